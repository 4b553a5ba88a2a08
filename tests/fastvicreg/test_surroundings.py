"""Odd surroundings: a run there works, or says in one line why it does not."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from images import encoded, photo
from runs import log
from tars import write_tar

from fastvicreg.pipelines.convert import Settings, convert_dataset

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--preset", "demo", "--image-size", "32", "--batch-size", "8", "--width", "16", "--expander", "16"),
    *("--steps", "4", "--device", "cpu"),
]
UNKNOWN = 54321
"""A user who is in no password file, as a container may be given."""
NO_HOME = "TEST_WITHOUT_HOME"
"""In an environment: it has no HOME."""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all of these tests, where compiled code is kept: nothing of this user's is read or written."""
    own = tmp_path_factory.getbasetemp() / "home"
    own.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(own))


def folder(root: Path, *, named: str = "class{}") -> Path:
    for number in range(24):
        path = root / named.format(number % 3) / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 30, 40)))
    return root


def run(
    command: list[str], environment: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``command`` of the program in a process of its own."""
    environment = environment or {}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "XDG_", "PYTHONUTF8"))}
    if NO_HOME in environment:
        del kept["HOME"]
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [sys.executable, *(["-m", "fastvicreg"] if command[0] != "-c" else []), *command],
        env={**kept, **environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=240,
        preexec_fn=before,
        check=False,
    )


def trains(data: Path, out: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A run of four steps over ``data``, which ends well."""
    ran = run(["train", "--data", str(data), "--out", str(out), *SMALL], **options)
    assert ran.returncode == 0, ran.stderr.decode("utf-8", "replace")[-3000:]
    assert [row["step"] for row in log(out) if "total" in row] == [1, 2, 3, 4]
    return ran


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def few_handles() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no home", "one core", "few handles", "C locale", "a name that is no text"])
def test_a_run_works_where(name: str, tmp_path: Path) -> None:
    environment: dict[str, str] = {"HOME": "/proc"} if name == "no home" else {}
    before = {"one core": one_core, "few handles": few_handles}.get(name)
    data, out = tmp_path / "data", tmp_path / "run"
    if name == "C locale":
        environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        data = tmp_path / "Bücher 图"
    if name == "a name that is no text":
        environment = {"LC_ALL": "C.UTF-8"}
        data, out = tmp_path / os.fsdecode(b"da ta \xff'"), tmp_path / "ru n'"
    folder(data, named="a class \udcfc {}" if name == "a name that is no text" else "class{}")
    trains(data, out, environment=environment, before=before)
    resumed = run(["train", "--resume", "--out", str(out), "--steps", "6"], environment, before)
    assert resumed.returncode == 0, resumed.stderr.decode("utf-8", "replace")[-3000:]
    assert [row["step"] for row in log(out) if "total" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_run_is_not_called_by_what_is_no_text(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"run \xfe")
    ran = run(["train", "--data", str(folder(tmp_path / "data")), "--out", str(out), *SMALL])
    assert ran.returncode == 2
    assert b"run \\udcfe: that name is no UTF-8 text" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert not out.exists()


@pytest.mark.slow
def test_many_shards_need_few_handles(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(300):
        image = encoded(photo(number, 20, 20))
        write_tar(tmp_path / "shards" / f"{number:03}.tar", [(f"{number}.jpg", image), (f"{number}.cls", b"1")])
    ran = run(["verify", str(tmp_path / "shards")], before=few_handles)
    assert b"0 faults in 300 samples" in ran.stdout, ran.stderr
    trains(tmp_path / "shards", tmp_path / "run", before=few_handles)


JUMPING = """
import random, time
real, chance = time.time, random.Random(0)
time.time = lambda: real() + chance.choice((-86400.0 * 400, -3600.0, 0.0, 5.0, 86400.0 * 400))
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_figure(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(JUMPING)
    trains(folder(tmp_path / "data"), tmp_path / "steady")
    trains(tmp_path / "data", tmp_path / "jumping", environment={"PYTHONPATH": str(tmp_path / "site")})
    assert log(tmp_path / "steady") == log(tmp_path / "jumping")
    rows = [json.loads(line) for line in (tmp_path / "jumping" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["images_per_s"] < 1e6 for row in rows if "images_per_s" in row)


def small_shared_memory() -> None:
    """Give this process a /dev/shm of 64 KiB of its own, where it may: a container has 64 MB."""
    libc = ctypes.CDLL(None, use_errno=True)
    own_mounts, private, recursive = 0x20000, 1 << 18, 1 << 14
    if libc.unshare(own_mounts) == 0:
        assert libc.mount(b"none", b"/", None, private | recursive, None) == 0, os.strerror(ctypes.get_errno())
        assert libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, b"size=64k") == 0, os.strerror(ctypes.get_errno())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "ffcv", "dali"])
def test_two_processes_need_few_handles_and_next_to_no_shared_memory(engine: str, tmp_path: Path) -> None:
    needed = {"ffcv": ("ffcv",), "dali": ("nvidia", "nvidia.dali")}.get(engine, ())
    if not all(map(find_spec, needed)):
        pytest.skip(f"{engine} is not installed")
    convert_dataset(folder(tmp_path / "data"), tmp_path / "data.beton", Settings(page_size=1 << 21))

    def before() -> None:
        few_handles()
        small_shared_memory()

    torchrun = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    launch = ["-c", torchrun, "--standalone", "--nproc-per-node", "2", "-m", "fastvicreg"]
    options = ["--data", str(tmp_path / "data.beton"), "--out", str(tmp_path / "run"), "--pipeline", engine, *SMALL]
    ran = run([*launch, "train", *options], before=before)
    assert ran.returncode == 0, ran.stderr.decode("utf-8", "replace")[-3000:]
    assert [row["step"] for row in log(tmp_path / "run") if "total" in row] == [1, 2, 3, 4]


@pytest.mark.slow
def test_nothing_lies_in_dev_shm(tmp_path: Path) -> None:
    """So that its size, 64 MB in a container, does not matter."""
    code = (
        "import os, sys\n"
        "from fastvicreg.cli import main\n"
        "from fastvicreg.pipelines.engines.engine import BatchEngine\n"
        "held, close = [], BatchEngine.close\n"
        "def watch(engine):\n"
        "    held.extend(line for line in open('/proc/self/maps') if '/dev/shm' in line)\n"
        "    links = [e.path for e in os.scandir('/proc/self/fd')]\n"
        "    held.extend(p for p in map(os.readlink, filter(os.path.lexists, links)) if p.startswith('/dev/shm'))\n"
        "    print('watched'); close(engine)\n"
        "BatchEngine.close = watch\n"
        "code = main(sys.argv[1:])\n"
        "print('held', held)\n"
        "sys.exit(code)"
    )
    ran = run(["-c", code, "train", "--data", str(folder(tmp_path / "data")), "--out", str(tmp_path / "run"), *SMALL])
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    assert b"watched" in ran.stdout
    assert b"held []" in ran.stdout


def unknown_who_reads() -> None:
    """Become another user, who may read everything and write what is theirs: python itself may lie in root's home."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_capabilities, ambient, lift, read_search = 8, 47, 2, 2
    assert libc.prctl(keep_capabilities, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setgid(UNKNOWN)
    os.setuid(UNKNOWN)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*[1 << read_search] * 3, 0, 0, 0)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
    assert libc.prctl(ambient, lift, read_search, 0, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="every run here is another user's than root's")
def test_a_user_without_a_home_or_a_name_runs_it_from_a_folder_that_is_not_theirs(tmp_path: Path) -> None:
    data, theirs = folder(tmp_path / "data"), tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, UNKNOWN, UNKNOWN)
    for above in tmp_path.parents[:3]:  # pytest's, closed to others
        above.chmod(above.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    try:
        subprocess.run(["true"], preexec_fn=unknown_who_reads, check=True)
    except (subprocess.SubprocessError, PermissionError) as error:
        pytest.skip(f"no right to become another user who reads: {error}")
    environment = {"TMPDIR": str(theirs)} | {NO_HOME: "1"}
    trains(data, theirs / "run", environment=environment, before=unknown_who_reads)
    assert (theirs / "run").stat().st_uid == UNKNOWN
    assert (theirs / f"fastvicreg-{UNKNOWN}" / "numba").is_dir()  # compiled code, which could lie nowhere else
    refused = run(
        ["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL], environment, unknown_who_reads
    )
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.decode().splitlines() if str(tmp_path / "run") in line]
    assert "Permission denied" in line
    assert "Traceback" not in refused.stderr.decode()


FORKED = """
import os, sys, torch
from fastvicreg.pipelines.loader import ViewLoader
torch.set_num_threads(2)
(torch.randn(500, 500) @ torch.randn(500, 500)).sum()
with ViewLoader(sys.argv[1], batch_size=8, image_size=32) as loader:
    for batch in loader:
        pass
    child = os.fork()
    if not child:
        from fastvicreg.cli import main
        os._exit(main(sys.argv[2:]))
    status = os.waitpid(child, 0)[1]
    for batch in loader:  # the parent's own threads are still there
        pass
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_a_child_that_was_forked_from_a_notebook_trains(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    ran = run(["-c", FORKED, str(data), "train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL])
    assert b"torch runs on one here" in ran.stderr
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    assert [row["step"] for row in log(tmp_path / "run") if "total" in row] == [1, 2, 3, 4]


LOADED = """
import torch
import fastvicreg
torch.set_num_threads(2)
a = torch.randn(512, 512)
float((a @ a).sum() + a.sigmoid().sum())  # torch's threads are there now
loader = torch.utils.data.DataLoader(torch.arange(8), num_workers=2, multiprocessing_context="fork")
print(sum(int(one) for one in loader))
"""


def test_torch_s_dataloader_forks_without_a_word() -> None:
    ran = run(["-c", LOADED])
    assert (ran.returncode, ran.stdout.strip()) == (0, b"28"), ran.stderr.decode()[-3000:]
    assert b"forked" not in ran.stderr
