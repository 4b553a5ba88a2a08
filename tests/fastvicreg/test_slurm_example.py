"""The SLURM script starts one torchrun a machine, and puts its job back into the queue once the run has stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
COMMANDS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" != show ] || printf "first\\nsecond\\n"',
    "scancel": 'echo "scancel $*" >> "$LOG"; kill -TERM "$(cat "$LOG.pid")"',
    "srun": 'echo "srun $*" >> "$LOG"; echo $$ > "$LOG.pid"; exec sleep "$LASTS"',
}
"""SLURM's, as far as the script goes."""


def started(folder: Path, lasts: int) -> subprocess.Popen[bytes]:
    for name, text in COMMANDS.items():
        command = folder / name
        command.write_text(f"#!/bin/bash\n{text}\n")
        command.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "all", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, **job, "LOG": str(folder / "log"), "LASTS": str(lasts)}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    return subprocess.Popen(["bash", str(SCRIPT), "runs/mine", "--data", "a folder"], env=environment)


def test_the_run_is_stopped_and_the_job_requeued_at_the_notice(tmp_path: Path) -> None:
    job = started(tmp_path, 60)
    deadline = time.monotonic() + 20
    while not (tmp_path / "log.pid").exists() or not (tmp_path / "log.pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    show, run, *rest = (tmp_path / "log").read_text().splitlines()
    assert show == "scontrol show hostnames all"
    assert "torchrun --nnodes 2 --nproc-per-node 4 --max-restarts 3" in run
    assert "--rdzv-endpoint first:29500" in run
    assert run.endswith("-m fastvicreg train --resume --out runs/mine --data a folder")
    assert rest == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_a_job_that_is_done_is_not_requeued(tmp_path: Path) -> None:
    assert started(tmp_path, 0).wait(timeout=20) == 0
    assert "requeue" not in (tmp_path / "log").read_text()
