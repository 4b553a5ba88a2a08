"""What holds a run back, in one sentence with its evidence and what to change next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Bound = Literal["data", "host", "launch", "sync", "compute", "comm", "copy"]

THRESHOLD = 0.10
"""A cause below this share of the step holds nothing back."""

_ADVICE: dict[Bound, str] = {
    "data": "swap the data engine (--pipeline ffcv or dali, more --workers, convert the images once)",
    "host": "give the device more work a call: torch.compile, fused kernels (--kernel), larger batches",
    "launch": "launch less: torch.compile or CUDA graphs, fused kernels (--kernel), a larger batch",
    "sync": "take the synchronisation out of the step (.item(), .cpu(), printing a tensor, pageable copies)",
    "comm": "exchange less or overlap more (--kernel loss=gram, larger buckets, bf16 gradients, a larger batch)",
    "copy": "copy less (uint8 to the device, pinned memory, a stream of its own)",
    "compute": "swap the heaviest kernels (bf16, channels_last, --kernel) or use a faster device",
}
_CAUSES: dict[Bound, str] = {
    "data": "the device waits for data",
    "host": "the device waits for the host's operators and Python",
    "launch": "the device waits for launches",
    "sync": "the device stands still, the host still waiting for it,",
    "comm": "the device waits in communication that no computation hides",
    "copy": "the device copies while it computes nothing",
}


class Verdict(NamedTuple):
    """``bound`` names the cause; ``text`` is one sentence: the cause, its evidence, and what to change."""

    bound: Bound
    text: str


def judge_device(shares: Mapping[str, float], idle_by: Mapping[str, float], evidence: Mapping[str, str]) -> Verdict:
    """From shares of the step: the device's parts and idle's causes; the largest over 10 %, else compute.

    ``evidence`` adds to a cause what it was seen in.
    """
    causes: dict[Bound, float] = {
        "data": idle_by["data"],
        "sync": idle_by["sync"],
        "launch": idle_by["launch"],
        "host": idle_by["host_op"] + idle_by["python"],
        "comm": shares["comm"],
        "copy": shares["copy"],
    }
    bound = max(causes, key=causes.__getitem__)
    if causes[bound] <= THRESHOLD:
        seen = _seen("compute", evidence)
        return _verdict(
            "compute", f"the device computes for {shares['compute']:.0%} of the step{seen}, and no wait exceeds 10 %"
        )
    return _verdict(
        bound,
        f"{_CAUSES[bound]} for {causes[bound]:.0%} of the step{_seen(bound, evidence)}, "
        f"and computes for {shares['compute']:.0%}",
    )


def judge_host(stages: Mapping[str, float], data: float, comm: float, evidence: Mapping[str, str]) -> Verdict:
    """From a trace in which nothing ran on a device: data wait, exposed communication, else the largest stage."""
    if max(data, comm) > THRESHOLD:
        if data >= comm:
            return _verdict("data", f"the step waits for data for {data:.0%} of its time (no device in this trace)")
        return _verdict("comm", f"the host waits in communication for {comm:.0%} of the step (no device in this trace)")
    largest = max(stages, key=stages.__getitem__)
    text = f"on the host, {largest} takes {stages[largest]:.0%} of the step and data {data:.0%}"
    return _verdict("compute", f"{text}{_seen('compute', evidence)} (no device in this trace)")


def _seen(bound: Bound, evidence: Mapping[str, str]) -> str:
    return f" ({evidence[bound]})" if evidence.get(bound) else ""


def _verdict(bound: Bound, text: str) -> Verdict:
    word = {"comm": "Communication", "copy": "Copy"}.get(bound, bound.capitalize())
    return Verdict(bound, f"{word}-bound: {text}; next: {_ADVICE[bound]}.")
