"""Several processes as one run: which one this is, how they meet, and the agreements that are not gradients.

The one place, with doctor, that reads the environment: torchrun's and SLURM's variables. ``cli`` alone asks it besides
whether there are several processes, before torch is imported.
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fastvicreg.errors import UserError
from fastvicreg.train.meeting import meeting_place

PATIENCE = 1800.0
"""Seconds that a process waits for the others where nothing else is asked for: no wait is unbounded."""

ANSWER, FIRST_TO_TELL = 5.0, 2.0
"""Seconds that torchrun's store has to answer, and that the first process has to tell of a mistake that all make."""

Result = TypeVar("Result")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class OtherProcessError(UserError):
    """A mistake that another process has told of already."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def cores(self) -> int:
        """Cores for this process where its machine's are divided among those that run there."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def launched() -> Processes:
    """As torchrun launched it; one process without it.

    ``UserError`` where its variables are incomplete, and for one of several SLURM tasks that torchrun did not start:
    each would train a run of its own.
    """
    if "WORLD_SIZE" not in os.environ:
        _not_tasks_of_slurm()
        return Processes()
    try:
        return Processes(*(int(os.environ[name]) for name in VARIABLES[:4]))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, but {' '.join(VARIABLES)} are not all ({error}): "
            "start several processes with torchrun -m fastvicreg train ..., or unset WORLD_SIZE."
        ) from None


def _not_tasks_of_slurm() -> None:
    # A step's own count comes first: an interactive shell within a larger allocation is one task.
    asked = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "")
    tasks = int(asked) if asked.isdecimal() else 1
    if tasks < 2 or "SLURM_PROCID" not in os.environ:
        return
    asked = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", "")
    nodes = int(asked) if asked.isdecimal() and int(asked) else 1
    meet = (
        f"srun --nodes {nodes} --ntasks-per-node 1 torchrun --nnodes {nodes} --rdzv-backend c10d "
        "--rdzv-endpoint FIRST_NODE:29500"
        if nodes > 1
        else "srun --nodes 1 --ntasks 1 torchrun --standalone"
    )
    raise UserError(
        f"SLURM started {tasks} tasks that do not know each other, and each would train a run of its own: use "
        f"{meet} --nproc-per-node {-(-tasks // nodes)} -m fastvicreg train ... (for one process: SLURM_NTASKS=1 "
        "and SLURM_STEP_NUM_TASKS=1)."
    )


def device_of(processes: Processes, device: str) -> str:
    """Each process's own device: "cuda" as the one of its local rank. ``UserError`` where there are too few."""
    if processes.world_size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UserError(f"--device {device} names one device for {processes.world_size} processes: give cuda or cpu.")
    if processes.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{processes.local_world_size} processes on this machine, but {torch.cuda.device_count()} CUDA devices: "
            "start as many processes as devices."
        )
    return f"cuda:{processes.local_rank}"


def join(processes: Processes, device: str, *, patience: float = PATIENCE) -> None:
    """Meet the other processes, by gloo on the host and NCCL on CUDA, and wait for them ``patience`` seconds at most.

    ``UserError`` where they do not come.
    """
    if processes.world_size == 1 or dist.is_initialized():
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=patience)
    try:
        store, rank, world_size = next(rendezvous("env://", processes.rank, processes.world_size, timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
            store=meeting_place(store, rank, world_size, timeout=timeout),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the {processes.world_size} processes do not meet ({reason}): start them by torchrun."
        ) from error


def told_by_another(line: str) -> bool:
    """Whether another process tells its user ``line``; the first process tells at once, the others if it does not.

    At torchrun's own store, which is there before the processes have met and after one has ended: without torchrun, and
    where it does not answer, each tells.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    text = re.sub(r"^process \d+: ", "", line)
    key = f"told/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        place = dist.TCPStore(*where, timeout=timedelta(seconds=ANSWER))  # pyright: ignore[reportPrivateImportUsage]
        store = dist.PrefixStore("fastvicreg", place)  # pyright: ignore[reportPrivateImportUsage]
        deadline = time.monotonic() + (FIRST_TO_TELL if os.environ.get("RANK") != "0" else 0.0)
        while time.monotonic() < deadline and not store.check([key]):
            time.sleep(0.05)
        first = store.add(key, 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return False
    if not first:
        time.sleep(0.2)  # torchrun ends the others as soon as one has ended: after that one's line
    return not first


def leave() -> None:
    """Part from the other processes, where there are any."""
    if dist.is_initialized():
        gc.collect()  # a recorded step that nobody holds any more still holds NCCL, which would wait for it for ever
        dist.destroy_process_group()


def any_process(flag: bool, processes: Processes) -> bool:
    """Whether ``flag`` holds in one of the processes, which all ask at the same point."""
    if processes.world_size == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


class Agreement:
    """Whether a flag was raised in any process, asked at every step and answered at the next: nobody waits for it."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._asked: tuple[Tensor, dist.Work] | None = None

    def __call__(self, flag: bool) -> bool:
        """The processes' answer to the call before; one process's own, at once."""
        if self._processes.world_size == 1:
            return flag
        answer = self.settle()
        flags = torch.tensor(int(flag))
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._asked = flags, work
        return answer

    def settle(self) -> bool:
        """The last call's answer, waited for: before the processes part, or talk of something else."""
        if self._asked is None:
            return False
        (flags, work), self._asked = self._asked, None
        work.wait()
        return bool(flags)


def together(action: Callable[[], Result], processes: Processes) -> Result:
    """``action`` in every process; its ``UserError`` in one of them is an error in all."""
    try:
        result, error = action(), None
    except UserError as raised:
        result, error = None, raised
    failed = any_process(error is not None, processes)
    if error is not None:
        raise error
    if failed:
        raise OtherProcessError("another process could not go on.")
    return result  # type: ignore[return-value]


def gather(own: Result, processes: Processes) -> list[Result]:
    """What every process holds, by rank: for a few plain values."""
    if processes.world_size == 1:
        return [own]
    values: list[Result | None] = [None] * processes.world_size
    dist.all_gather_object(values, own)
    return values  # type: ignore[return-value]


def gather_rows(own_NX: Tensor, total: int, processes: Processes) -> Tensor:
    """Rows that the processes hold in turn (rank, rank + world size, ... of ``total``), put together in every one."""
    world = processes.world_size
    most = -(-total // world)
    padded = own_NX.new_zeros((most, *own_NX.shape[1:]))
    padded[: len(own_NX)] = own_NX
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]
