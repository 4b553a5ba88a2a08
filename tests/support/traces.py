"""Writes small traces as torch.profiler does, of old and new versions, whose true figures are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from fastvicreg.profiles.trace.events import Trace, read_trace
from fastvicreg.profiles.trace.summary import Summary, summarize

MAIN, AUTOGRAD = 101, 102
STEP = 1000.0
OLD_CATEGORIES = {
    "cpu_op": "Operator",
    "user_annotation": "Operator",
    "cuda_runtime": "Runtime",
    "kernel": "Kernel",
    "gpu_memcpy": "Memcpy",
    "gpu_memset": "Memset",
}


class TraceWriter:
    """Collects events; times are microseconds."""

    def __init__(self, device: str = "NVIDIA A100-SXM4-80GB", rank: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.header: dict[str, Any] = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": device}]}
        if rank is not None:
            self.header["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": 2}
        self._correlation = 1000

    def add(self, cat: str, name: str, ts: float, dur: float, tid: int = MAIN, pid: int = 100, **args: Any) -> None:
        """One complete event."""
        event = {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}
        self.events.append(event)

    def step(self, number: int, ts: float, dur: float) -> None:
        """The profiler's mark of a step."""
        self.mark(f"ProfilerStep#{number}", ts, dur)

    def mark(self, name: str, ts: float, dur: float, tid: int = MAIN) -> None:
        """An annotation."""
        self.add("user_annotation", name, ts, dur, tid)

    def op(self, name: str, ts: float, dur: float, tid: int = MAIN, **args: Any) -> None:
        """An operator; pass ``**{"External id": 3, "Input Dims": ...}``."""
        self.add("cpu_op", name, ts, dur, tid, **args)

    def call(self, name: str, ts: float, dur: float, tid: int = MAIN) -> None:
        """A call of the runtime that launches nothing."""
        self.add("cuda_runtime", name, ts, dur, tid, cbid=1)

    def launch(
        self, name: str, call: tuple[float, float], run: tuple[float, float], *, external: int = 0, stream: int = 7,
        tid: int = MAIN, kind: str = "kernel", device: int = 0,
    ) -> None:  # fmt: skip
        """A call at (ts, dur) and the device's work at (ts, dur) that it starts."""
        self._correlation += 1
        number = {"correlation": self._correlation, "External id": external}
        self.add("cuda_runtime", "cudaLaunchKernel", *call, tid, **number)
        self.add(kind, name, *run, stream, device, device=device, stream=stream, **number)
        flow = {"id": self._correlation, "cat": "ac2g", "name": "ac2g"}
        self.events.append({"ph": "s", "pid": 100, "tid": tid, "ts": call[0], **flow})
        self.events.append({"ph": "f", "pid": device, "tid": stream, "ts": run[0], "bp": "e", **flow})

    def memory(self, ts: float, size: int, total: int, device: int = -1, **args: int) -> None:
        """An allocation (or its release, where ``size`` is negative); pass ``**{"Total Reserved": 4096}``."""
        args |= {"Bytes": size, "Total Allocated": total, "Device Id": device, "Device Type": int(device >= 0)}
        self.events.append({"ph": "i", "s": "t", "name": "[memory]", "pid": 100, "tid": MAIN, "ts": ts, "args": args})

    def write(self, path: Path, *, old: bool = False, bare: bool = False, indent: int | None = None) -> Path:
        """As JSON, compressed where the name ends in .gz; ``old`` with the categories and fields of torch 1.8."""
        events = [_old(event) for event in self.events] if old else self.events
        content: Any = events if bare else {**self.header, "traceEvents": events, "traceName": str(path)}
        text = json.dumps(content, indent=indent).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return path


def _old(event: dict[str, Any]) -> dict[str, Any]:
    event = {**event, "args": dict(event.get("args", {}))}
    event["cat"] = OLD_CATEGORIES.get(event.get("cat", ""), event.get("cat", ""))
    on_device = event["cat"] in ("Kernel", "Memcpy", "Memset")
    event["tid"] = f"stream {event['tid']}" if on_device else str(event["tid"])
    if "External id" in event["args"] and event["cat"] != "Operator":
        event["args"]["external id"] = event["args"].pop("External id")
    return event


def device_trace(
    steps: int = 3, *, data_us: float = 300.0, gemm_us: float = 300.0, rank: int | None = None
) -> TraceWriter:
    """A training loop of known truth. A step of 1,000 us, where ``data_us`` and ``gemm_us`` are 300:

        host   | data wait 0-300 | mm 300-382 | allreduce, copy 384-397 | synchronise 850-930 | optimizer.step 930-990 |
        device                        mm 400-700 | nccl 650-800 | copy 800-850

    compute 300, exposed communication 100, copy 50, idle 550: data 300, host op 60 before the launch at 360 and 4
    around the launches, launch 31 (20, then 5 and 4 with the 2 between them), Python 5 between the operators, sync 80,
    then 60 in the optimizer's op and 10 in Python.
    """
    writer = TraceWriter(rank=rank)
    at = 10_000.0
    for number in range(steps):
        d, g = at + data_us, at + data_us + gemm_us
        length = data_us + gemm_us + 400
        writer.step(number + 5, at, length)
        writer.mark("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", at, data_us)
        writer.op(
            "aten::mm", d, 82, **{"External id": 10 * number + 1, "Input Dims": [[512, 1024], [1024, 256]],
            "Input type": ["float", "float"]},
        )  # fmt: skip
        writer.launch("ampere_sgemm_128x64_tn", (d + 60, 20), (d + 100, gemm_us), external=10 * number + 1)
        writer.op("c10d::allreduce_", d + 84, 7, **{"External id": 10 * number + 3})
        writer.launch("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevComm*)", (d + 85, 5), (g + 50, 150), stream=20)
        writer.op("aten::copy_", d + 91, 6, **{"External id": 10 * number + 4})
        writer.launch("Memcpy DtoH (Device -> Pinned)", (d + 92, 4), (g + 200, 50), kind="gpu_memcpy")
        writer.call("cudaStreamSynchronize", g + 250, 80)
        writer.mark("Optimizer.step#SGD.step", g + 330, 60)
        writer.op("aten::_foreach_add_", g + 330, 60, **{"External id": 10 * number + 2})
        at += length
    return writer


def summary(writer: TraceWriter, folder: Path, name: str = "trace.json", **options: str) -> Summary:
    """Of the trace, written to ``folder`` and read again."""
    return summarize(read_trace(writer.write(folder / name)), **options)


def loop(steps: int = 4, *, first: float = 0.0) -> tuple[TraceWriter, list[float]]:
    """Marked steps of ``STEP`` microseconds that begin with a kernel of 200; where each begins."""
    writer, starts = TraceWriter(), []
    for number in range(steps):
        at = first + number * STEP
        writer.step(number, at, STEP)
        writer.launch("gemm", (at + 5, 5), (at + 12, 200))
        starts.append(at)
    return writer, starts


def content(trace: Trace) -> list[tuple]:
    """The events as plain values."""
    return [
        (trace.kind_N[i], trace.names[trace.name_N[i]], trace.start_N[i], trace.end_N[i], trace.external_N[i])
        for i in range(len(trace.kind_N))
    ]


def written(path: Path, data: bytes) -> Path:
    """The path, after writing."""
    path.write_bytes(data)
    return path
