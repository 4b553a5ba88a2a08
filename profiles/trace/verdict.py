"""What holds a run back, in one sentence with its evidence and what to change next."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Literal, NamedTuple

Bound = Literal["data", "host", "launch", "sync", "allocator", "startup", "compute", "comm", "copy", "unknown"]

THRESHOLD = 0.10
"""A cause below this share of the step holds nothing back."""
PYTHON = 1 / 3
"""Share of a step on the host alone beyond which Python between operators holds it back."""

_TITLES: dict[Bound, str] = {
    "comm": "Communication-bound",
    "allocator": "Allocator-bound",
    "startup": "Start-up",
    "unknown": "Unexplained",
}
_CAUSES: dict[Bound, str] = {
    "data": "the device waits for data",
    "host": "the device waits for the host's operators and Python",
    "launch": "the device waits for launches",
    "sync": "the device stands still while the host is in blocking calls",
    "allocator": "the device stands still while the host is in the driver's allocator",
    "startup": "the host starts the device up or uses code for the first time",
    "comm": "the device waits in communication that no computation hides",
    "copy": "the device copies while it computes nothing",
    "unknown": "the device stands still for reasons that the trace does not hold, the host not being recorded,",
}


class Verdict(NamedTuple):
    """``bound`` names the cause; ``text`` is one sentence: the cause, its evidence, and what to change."""

    bound: Bound
    text: str

    @property
    def title(self) -> str:
        """The sentence's first words."""
        return _TITLES.get(self.bound, f"{self.bound.capitalize()}-bound")


def judge_device(
    shares: Mapping[str, float],
    idle_by: Mapping[str, float],
    evidence: Mapping[str, str],
    used: Set[str] = frozenset(),
) -> Verdict:
    """From shares of the step: the device's parts and idle's causes; the largest over 10 %, else compute.

    ``evidence`` adds to a cause what it was seen in, ``used`` names what the run does already ("graphs", "compile",
    "half", "channels_last", "no convolutions").
    """
    causes: dict[Bound, float] = {
        "data": idle_by["data"],
        "sync": idle_by["sync"],
        "allocator": idle_by.get("alloc", 0.0),
        "startup": idle_by.get("startup", 0.0),
        "launch": idle_by["launch"],
        "host": idle_by["host_op"] + idle_by["python"],
        "comm": shares["comm"],
        "copy": shares["copy"],
        "unknown": idle_by.get("unknown", 0.0),
    }
    bound = max(causes, key=causes.__getitem__)
    if causes[bound] <= THRESHOLD:
        seen = _seen("compute", evidence)
        text = f"the device computes for {shares['compute']:.0%} of the step{seen}, and no wait exceeds 10 %"
        return _verdict("compute", text, advice("compute", used))
    text = f"{_CAUSES[bound]} for {causes[bound]:.0%} of the step{_seen(bound, evidence)}, "
    text += f"and computes for {shares['compute']:.0%}"
    if bound == "startup":
        rest = {name: share for name, share in causes.items() if name != "startup"} | {"compute": shares["compute"]}
        left = max(1 - causes["startup"], 1e-9)
        name = max(rest, key=rest.__getitem__)
        text += f"; of the rest {name} takes {rest[name] / left:.0%}{_seen(name, evidence)}"
    python = idle_by["python"] > idle_by["host_op"]
    return _verdict(bound, text, advice(bound, used, python=python, seen=evidence.get(bound, "")))


def judge_host(shares: Mapping[str, float], evidence: Mapping[str, str], used: Set[str] = frozenset()) -> Verdict:
    """From a trace in which nothing ran on a device: shares of the step of data, comm, operators and python.

    Data and communication count from 10 % on, Python between the operators where it is more than they or a third.
    """
    data, comm, python = shares["data"], shares["comm"], shares["python"]
    rest = f"operators take {shares['operators']:.0%}, Python between them {python:.0%}, data {data:.0%}"
    end = f"{rest} (no device in this trace)"
    if max(data, comm) > THRESHOLD and max(data, comm) >= min(python, PYTHON):
        if data >= comm:
            text = f"the step waits for data for {data:.0%} of its time{_seen('data', evidence)}; {end}"
            return _verdict("data", text, advice("data", used))
        text = f"the host waits in communication for {comm:.0%} of the step; {end}"
        return _verdict("comm", text, advice("comm", used))
    if python > min(shares["operators"], PYTHON):
        text = f"the step is in Python between operators for {python:.0%} of its time{_seen('python', evidence)}; {end}"
        return _verdict("host", text, advice("host", used, python=True, device=False))
    text = f"operators run for {shares['operators']:.0%} of the step{_seen('compute', evidence)}; {end}"
    return _verdict("compute", text, advice("compute", used, device=False))


def not_recorded(launches: int, call: str) -> Verdict:
    """Of a trace in which the host launched work, and no kernel was written."""
    text = (
        f"{launches:,} launches ({call}) and not one kernel: the device was not recorded, and nothing can be said of it"
    )
    how = (
        "record it: ProfilerActivity.CUDA (or XPU), no other profiler on the device (Nsight, DCGM, a second process), "
        "leave to use the counters (NVreg_RestrictProfilingToAdminUsers=0, CAP_SYS_ADMIN in a container)"
    )
    return Verdict("unknown", f"Not recorded: {text}; next: {how}.")


def advice(bound: Bound, used: Set[str], *, python: bool = False, device: bool = True, seen: str = "") -> str:
    """What to change next, without what the run does already."""
    if bound in ("host", "launch"):
        ways = [] if "compile" in used else ["torch.compile"]
        ways += [] if "graphs" in used or not device else ["CUDA graphs"]
        ways += ["fused kernels (--kernel)", "a larger batch"] if device or not python else ["a larger batch"]
        if bound == "launch":
            return f"launch less: {', '.join(ways)}"
        if python:
            return f"take Python out of the step (logging, loops over tensors, hooks), or use {', '.join(ways)}"
        return f"give the device more work a call: {', '.join(ways)}"
    if bound == "compute":
        ways = [] if "half" in used else ["bf16"]
        ways += [] if {"channels_last", "no convolutions"} & used else ["channels_last"]
        ways += [] if "compile" in used else ["torch.compile"]
        ways += ["--kernel"] if device else ["--kernel", "more threads (OMP_NUM_THREADS)"]
        return f"swap the heaviest {'kernels' if device else 'operators'} ({', '.join(ways)}) or use a faster device"
    if bound == "sync" and "emcpy" in seen:
        return "copy without blocking: pinned memory (pin_memory=True) with non_blocking=True, fewer .item() and .cpu()"
    return _ADVICE[bound]


_ADVICE: dict[Bound, str] = {
    "data": "swap the data engine (--pipeline ffcv or dali, more --workers, convert the images once)",
    "sync": "take the synchronisation out of the step (.item(), .cpu(), printing a tensor, pageable copies)",
    "allocator": "keep memory in torch's cache: no PYTORCH_NO_CUDA_MEMORY_CACHING, no empty_cache() in the step, "
    "shapes that repeat, PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    "startup": "profile later steps: schedule(wait=2, warmup=2, active=5), with recorder.step() after each",
    "comm": "exchange less or overlap more (--kernel loss=gram, larger buckets, bf16 gradients, a larger batch)",
    "copy": "copy less (uint8 to the device, pinned memory, a stream of its own)",
    "unknown": "record the host too: ProfilerActivity.CPU, and with_stack=True for Python",
}


def _seen(bound: str, evidence: Mapping[str, str]) -> str:
    return f" ({evidence[bound]})" if evidence.get(bound) else ""


def _verdict(bound: Bound, text: str, advice: str) -> Verdict:
    return Verdict(bound, f"{Verdict(bound, '').title}: {text}; next: {advice}.")
