"""Traces whose truth is known: made ones by how they are made, public ones by an independent reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from traces import STEP, TraceWriter, device_trace, loop

from fastvicreg.profiles.trace.summary import Summary


class Known(NamedTuple):
    """A trace and what is true of it; ``bound`` is the verdict's cause, ``says`` what its sentence must hold.

    ``shares`` are of the steps' time, of the device's parts or of idle's causes ("idle sync"), to within 1 %.
    """

    name: str
    true: str
    bound: str
    says: tuple[str, ...] = ()
    shares: Mapping[str, float] = {}
    holds: Callable[[Summary], bool] = lambda summary: True
    steps_by: str | None = None
    made: Callable[[], TraceWriter] | None = None

    def faults(self, found: Summary) -> list[str]:
        """What a summary of the trace gets wrong."""
        shares = {**(found.device_shares or {}), **{f"idle {k}": v for k, v in (found.idle_by or {}).items()}}
        shares |= {"python": found.host.shares["python"]} if found.host else {}
        wrong = [f"bound by {found.verdict.bound}, not {self.bound}"] * (found.verdict.bound != self.bound)
        wrong += [f"does not say {text}" for text in self.says if text not in found.verdict.text]
        wrong += [
            f"{name} is {shares.get(name)}, not {share}"
            for name, share in self.shares.items()
            if abs(shares.get(name, -1.0) - share) > 0.01
        ]
        return wrong + ["further facts do not hold"] * (not self.holds(found))


def device_ms(summary: Summary, operator: str) -> float:
    """Milliseconds of the device's work that an operator launched."""
    return next((row.device_ms for row in summary.operators if row.name == operator), 0.0)


def _misleading_ids() -> TraceWriter:
    writer, starts = loop()
    for at in starts:
        writer.op("aten::mm", at + 220, 30)
        writer.launch("k_mm", (at + 230, 5), (at + 240, 600))
        number = writer.events[-4]["args"]["correlation"]
        writer.op("aten::copy_", at + 900, 20, **{"External id": number})
        writer.events[-4]["args"]["External id"] = number
    return writer


def _pageable() -> TraceWriter:
    writer, starts = loop()
    for at in starts:
        writer.op("aten::copy_", at + 220, 690)
        writer.launch("Memcpy DtoH (Device -> Pageable)", (at + 225, 680), (at + 890, 10), kind="gpu_memcpy")
        writer.events[-4]["name"] = "cudaMemcpyAsync"
    return writer


def _step(*events: tuple[str, str, float, float]) -> Callable[[], TraceWriter]:
    """Marked steps with a kernel in their first 212 us, and these further (category, name, start, length) events."""

    def made() -> TraceWriter:
        writer, starts = loop(5)
        for at in starts:
            for category, name, start, length in events:
                if category == "kernel":
                    writer.launch(name, (at + 225, 5), (at + start, length))
                else:
                    writer.add(category, name, at + start, length)
        return writer

    return made


def _launches() -> TraceWriter:
    writer, starts = loop()
    for at in starts:
        for number in range(70):
            writer.launch("tiny", (at + 220 + 10 * number, 9), (at + 229 + 10 * number, 1))
    return writer


def _host_python() -> TraceWriter:
    writer = TraceWriter()
    for number in range(4):
        writer.step(number, number * STEP, STEP)
        writer.op("aten::mm", number * STEP + 500, 50)
    return writer


def _not_recorded() -> TraceWriter:
    writer = TraceWriter()
    for number in range(3):
        writer.step(number, number * STEP, STEP)
        writer.op("aten::mm", number * STEP, 500)
        writer.call("cudaLaunchKernel", number * STEP + 20, 5)
    return writer


def _other_device() -> TraceWriter:
    writer = TraceWriter(device="MTIA")
    for number in range(4):
        writer.step(number, number * STEP, STEP)
        writer.op("aten::mm", number * STEP + 10, 900)
        writer.add("mtia_ccp_events", "mm", number * STEP + 50, 940, 3, 0, device=0)
    return writer


def _device_alone() -> TraceWriter:
    writer = TraceWriter()
    for number in range(20):
        writer.add("kernel", "k", 1000.0 * number, 500, 7, 0, device=0, stream=7, correlation=number)
    return writer


def _start_up() -> TraceWriter:
    writer = TraceWriter()
    writer.call("cudaDeviceGetStreamPriorityRange", 0, 19_000_000)
    writer.op("aten::mm", 19_200_000, 50_000)
    writer.launch("gemm", (19_249_000, 5), (19_250_000, 100))
    return writer


def _empty_last() -> TraceWriter:
    writer, starts = loop(5)
    for at in starts:
        writer.mark("data_loading", at + 220, 700)
    writer.step(5, 5 * STEP, 50)
    return writer


def _outlier() -> TraceWriter:
    writer, at = TraceWriter(), 0.0
    for number in range(7):
        length = STEP if number != 3 else 100 * STEP
        writer.step(number, at, length)
        writer.op("aten::mm", at, 900)
        writer.launch("gemm", (at + 1, 5), (at + 20, 960))
        at += length
    return writer


def _own_steps() -> TraceWriter:
    writer = device_trace(5)
    for event in writer.events:
        if event["name"].startswith("ProfilerStep"):
            event["name"] = "train_step"
    return writer


def _timeless() -> TraceWriter:
    writer = _step(("user_annotation", "load_batch", 220, 700))()
    for event in writer.events:
        event["ts"] += 1.6e15
    writer.add("kernel", "late", 0, 0, 7, 0, device=0, stream=7)
    return writer


_LATE = (("cuda_runtime", "cudaStreamWaitEvent", 220, 2), ("kernel", "late", 900, 50))
_LOGGING = (("python_function", "train.py(20): log_everything", 230, 700), ("cpu_op", "aten::copy_", 950, 4))
_FRAME = "torch/utils/data/dataloader.py(1200): _next_data"
MADE = (
    Known("a launch whose External id is another operator's", "aten::mm launches all, aten::copy_ nothing", "host",
          holds=lambda s: device_ms(s, "aten::mm") > 2 and device_ms(s, "aten::copy_") == 0, made=_misleading_ids),
    Known("a pageable copy", "sync: a blocking cudaMemcpyAsync", "sync", ("cudaMemcpyAsync", "pinned"), made=_pageable),
    Known("a launch and a long wait after it", "host: in a call for .2 %, else Python", "host", ("Python",),
          {"idle launch": 0.005}, made=_step(*_LATE)),
    Known("logging between operators", "host: train.py(20) 70 %, aten::copy_ .4 %", "host",
          ("train.py(20): log_everything 70.0%",), made=_step(*_LOGGING)),
    Known("Python on a host alone", "host: Python takes 95 %", "host", ("Python",), {"python": 0.95},
          made=_host_python),
    Known("launches without kernels", "kernels were not recorded: nothing is known", "unknown", ("Not recorded",),
          made=_not_recorded),
    Known("a device of a further kind", "its events are the device's work: 94 %", "compute", (), {"compute": 0.94},
          made=_other_device),
    Known("a custom all-reduce", "comm 70 %", "comm", ("cross_device_reduce",), {"comm": 0.7},
          made=_step(("kernel", "vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>", 250, 700))),
    Known("an expert-parallel dispatch", "comm 70 %", "comm", ("deep_ep",), {"comm": 0.7},
          made=_step(("kernel", "deep_ep::intranode::dispatch<8, 768, 8192>", 250, 700))),
    Known("a foreign annotation of data", "data 70 %", "data", ("data_loading 70.0%",), {"idle data": 0.7},
          made=_step(("user_annotation", "data_loading", 220, 700))),
    Known("the loader's frames", "data 70 %", "data", ("_next_data 70.0%",), {"idle data": 0.7},
          made=_step(("python_function", _FRAME, 220, 700))),
    Known("torch's own loader", "data 30 %", "data", ("DataLoader",), {"compute": 0.3, "comm": 0.1, "idle data": 0.3},
          made=lambda: device_trace(5)),
    Known("the driver's allocator", "hipFree 60 %", "allocator", ("hipFree 60.0%",), {"idle alloc": 0.6},
          made=_step(("cuda_runtime", "hipFree", 300, 600))),
    Known("CUDA's start-up", "start-up 99 %", "startup", ("cudaDeviceGetStreamPriorityRange",), made=_start_up),
    Known("launches back to back", "launch", "launch", ("CUDA graphs",), made=_launches),
    Known("an empty last step", "data 70 % of five steps, the sixth is empty", "data", (), {"idle data": 0.7},
          lambda s: len(s.steps.names) == 5 and s.steps.apart[0].why == "empty", made=_empty_last),
    Known("an outlier", "compute 96 % of six steps", "compute", (), {"compute": 0.96},
          lambda s: len(s.steps.names) == 6 and s.steps.apart[0].why == "outlier", made=_outlier),
    Known("steps by an annotation", "data 30 % of five steps", "data", (), {"idle data": 0.3},
          lambda s: len(s.steps.names) == 5, "train_step", _own_steps),
    Known("an event at time 0", "data 70 %; a span of 5 ms", "data", (), {"idle data": 0.7},
          lambda s: s.trace.end_N.max() < 6000, made=_timeless),
    Known("a device without its host", "idle time is unexplained", "unknown", ("ProfilerActivity.CPU",),
          made=_device_alone),
)  # fmt: skip

PUBLIC = (
    Known("hta_negative_queue_length_values_check__rank0.json.gz", "sync: 766.6 of 1,074 ms in a blocking "
          "cudaMemcpyAsync; compute 16.8 %, NCCL exposed 15.1 %, copy 3.6 %", "sync", ("cudaMemcpyAsync",),
          {"compute": 0.168, "comm": 0.151, "copy": 0.036}),
    Known("hta_trace_filter__sampled_rank-0.json.gz", "NCCL exposed 27.4 %, the host in operators and Python for more; "
          "in a launch call for .5 % of the idle time", "host", (), {"comm": 0.274, "idle launch": 0.003}),
    Known("hta_trace_filter__sampled_rank-1.json.gz", "NCCL exposed 24.5 %, the host in operators and Python for more",
          "host", (), {"comm": 0.245}),
    Known("hta_gpu_user_annotation.json.gz", "host: busy 2.9 %; aten::add_ has .100 ms of device time", "host",
          (), {"idle": 0.971}, lambda s: abs(device_ms(s, "aten::add_") - 0.1) < 0.005),
    Known("hta_critical_path__alexnet__benchmark_result_2869224_1695835535_trace.json.gz",
          "start-up: 29.9 of 43.4 s in cudaDeviceGetStreamPriorityRange", "startup",
          ("cudaDeviceGetStreamPriorityRange",)),
    Known("hta_execution_trace__benchmark_simple_add_trace.json.gz",
          "start-up: 19.6 of 19.8 s; aten::uniform_ .010 ms of device time", "startup", (), {},
          lambda s: abs(device_ms(s, "aten::uniform_") - 0.01) < 0.002),
    Known("hta_cupti_profiler__benchmark_result_924719_1679055439_trace.json.gz", "no kernel was recorded", "unknown",
          ("Not recorded",), {}, lambda s: s.trace.foreign.get("cuda_profiler_range") == 77),
    Known("hta_mtia_inference_trace__mtia_inference_rank_0.json.gz", "1,313 mtia_ccp_events are the device's work",
          "compute"),
    Known("hta_amd_trace__mi250_minitoy_train_ROCm6_2_kineto.json.gz",
          "start-up: 6.6 of 9.29 ms in hipLaunchKernel, nearly all first use", "startup", ("hipLaunchKernel",), {},
          lambda s: len(s.steps.names) == 1 and abs(s.step_ms["p50"] - 9.29) < 0.01),
    Known("tl_h100_qwen.json.gz", "compute: busy 43.27 of 47.15 ms", "compute", (), {"idle": 1 - 43.27 / 47.15}),
    Known("tl_mi300_qwen.json.gz", "compute: busy 38.72 of 42.74 ms", "compute", (), {"idle": 1 - 38.72 / 42.74}),
    Known("tl_h100_timesformer.json.gz", "host: 57 % in Python before the device starts; aten::copy_ .4 %", "host",
          ("Python", "aten::copy_ 0.4%")),
    Known("tl_vllm_decode_full.json.gz", "host: idle 43.9 % before the first kernel; in a launch call for 2.8 %",
          "host", (), {"idle": 0.439}),
    Known("tl_train_resnet18.json.gz", "allocator: hipFree 3,346 of 3,393 ms; busy 10.6 %", "allocator", ("hipFree",),
          {"idle": 0.894}),
    Known("resnet50_num_workers_0__worker0.1623143089861.pt.trace.json.gz", "data 33.9 %", "data", ("DataLoader",),
          {"idle data": 0.339}),
    Known("resnet50_num_workers_4__worker0.1623212756351.pt.trace.json.gz", "host; data .8 %: not data-bound", "host",
          (), {"idle data": 0.008}),
)  # fmt: skip
