"""FLOPs of matrix products and convolutions from their input shapes, and the peaks of the devices that run them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastvicreg.profiles.trace.communication import is_communication
from fastvicreg.profiles.trace.events import Trace

PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("V100-PCIE", {"fp16": 112.0, "fp32": 14.0, "fp64": 7.0}),
    ("V100", {"fp16": 125.0, "fp32": 15.7, "fp64": 7.8}),
    ("A100", {"fp16": 312.0, "bf16": 312.0, "tf32": 156.0, "fp32": 19.5, "fp64": 19.5, "int8": 624.0}),
    ("H100 PCIe", {"fp8": 1513.0, "fp16": 756.0, "bf16": 756.0, "tf32": 378.0, "fp32": 51.0, "fp64": 51.0}),
    ("H100 NVL", {"fp8": 1671.0, "fp16": 835.0, "bf16": 835.0, "tf32": 417.0, "fp32": 60.0, "fp64": 60.0}),
    ("H200 NVL", {"fp8": 1671.0, "fp16": 835.0, "bf16": 835.0, "tf32": 417.0, "fp32": 60.0, "fp64": 60.0}),
    ("H100", {"fp8": 1979.0, "fp16": 989.0, "bf16": 989.0, "tf32": 494.0, "fp32": 67.0, "fp64": 67.0}),
    ("H200", {"fp8": 1979.0, "fp16": 989.0, "bf16": 989.0, "tf32": 494.0, "fp32": 67.0, "fp64": 67.0}),
    ("B200", {"fp8": 4500.0, "fp16": 2250.0, "bf16": 2250.0, "tf32": 1125.0, "fp32": 75.0, "fp64": 37.0}),
    ("MI300X", {"fp8": 2614.9, "fp16": 1307.4, "bf16": 1307.4, "tf32": 653.7, "fp32": 163.4, "fp64": 163.4}),
)
"""Dense TFLOP/s of a device by its name, the first that fits: NVIDIA's and AMD's data sheets."""

_DTYPES = {
    "float": "fp32",
    "double": "fp64",
    "c10::half": "fp16",
    "c10::bfloat16": "bf16",
    "c10::float8_e4m3fn": "fp8",
    "c10::float8_e5m2": "fp8",
    "c10::float8_e4m3fnuz": "fp8",
    "signed char": "int8",
}
_TF32 = re.compile(r"tf32|s1688gemm|s1688fprop|s1688dgrad|s1688wgrad|tensorop_s1688|sm80_xmma.*tf32", re.IGNORECASE)
_HELPER = re.compile(
    r"nchwtonhwc|nhwctonchw|converttensor|computeoffsets|elementwise|fill|splitk_?reduce|reduce_kernel|transpose|memset"
    r"|compute_?gemm_?pointers|bias",
    re.IGNORECASE,
)
"""Kernels that serve a product without being it."""


Rule = Callable[[Any, Any], tuple[int, float]]
"""From input dims and concrete inputs to the place of an input of the product's dtype, and the FLOPs."""


class Peak(NamedTuple):
    """TFLOP/s by precision."""

    device: str
    tflops: dict[str, float]


def device_peak(device: str | None) -> Peak | None:
    """None for a device that the table does not hold."""
    for name, tflops in PEAKS:
        if device and name.lower() in device.lower():
            return Peak(name, tflops)
    return None


class Work(NamedTuple):
    """What one call of an operator computes."""

    flops: float
    dtype: str


def operator_work(name: str, shape: tuple[bytes, bytes, bytes]) -> Work | None:
    """FLOPs (a multiply-add counts two) and input precision; None where the shapes do not tell.

    ``shape`` is the JSON text of the input dims, the input types and, of convolutions, the concrete inputs.
    """
    rule = _RULES.get(name.removeprefix("aten::"))
    if rule is None:
        return None
    dims, types, concrete = (_json(text) for text in shape)
    try:
        kind, flops = rule(dims, concrete)
        dtype = _DTYPES[str(types[kind]).lower()]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return Work(float(flops), dtype) if flops > 0 else None


def kernel_flops(
    trace: Trace, kernels: NDArray[np.int64], op_K: NDArray[np.int64], peak: Peak | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each kernel, launched by the operator ``op_K`` (-1: unknown), its FLOPs and its peak in FLOP/s; NaN: unknown.

    An operator's FLOPs are divided among its kernels by their time, those that only convert or add up left out.
    """
    flops_N, peak_N = np.full(len(kernels), np.nan), np.full(len(kernels), np.nan)
    known = (op_K >= 0) & ~trace.named(kernels, _HELPER) & ~is_communication(trace, kernels)
    known[known] = trace.shape_N[op_K[known]] >= 0
    if peak is None or not known.any():
        return flops_N, peak_N
    ops, place = np.unique(op_K, return_inverse=True)
    length = trace.end_N[kernels] - trace.start_N[kernels]
    of_op = np.bincount(place[known], length[known], len(ops))
    tf32 = trace.named(kernels, _TF32)
    kinds, kind = np.unique(
        trace.name_N[ops] * np.int64(len(trace.shapes) + 1) + trace.shape_N[ops], return_inverse=True
    )
    kind_K = np.where(known & (length > 0), kind[place], -1)
    for number in np.unique(kind_K[kind_K >= 0]).tolist():
        name, shape = divmod(int(kinds[number]), len(trace.shapes) + 1)
        if work := operator_work(trace.names[name], trace.shapes[shape]):
            of_kind = np.flatnonzero(kind_K == number)
            flops_N[of_kind] = work.flops * length[of_kind] / of_op[place[of_kind]]
            for fast in (False, True):
                dtype = "tf32" if work.dtype == "fp32" and fast else work.dtype
                peak_N[of_kind[tf32[of_kind] == fast]] = peak.tflops.get(dtype, np.nan) * 1e12
    return flops_N, peak_N


def _json(text: bytes) -> Any:
    return json.loads(text) if text else []


def _numbers(value: Any) -> list[int]:
    """A list of integers, written as such or as text."""
    return [int(v) for v in (json.loads(value) if isinstance(value, str) else value)]


def _product(left: int, right: int) -> Rule:
    """[..., M, K] x [K, N] or [B, K, N]: the rule of a product of the inputs at these places."""

    def rule(dims: Any, _: Any) -> tuple[int, float]:
        a, b = dims[left], dims[right]
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            raise ValueError
        return left, 2.0 * math.prod(a) * b[-1]

    return rule


def _linear(dims: Any, _: Any) -> tuple[int, float]:
    if len(dims[1]) != 2 or dims[0][-1] != dims[1][-1]:
        raise ValueError
    return 0, 2.0 * math.prod(dims[0]) * dims[1][0]


def _convolution(stride: int, padding: int, dilation: int) -> Rule:
    """A forward convolution whose settings stand at these places of the concrete inputs."""

    def rule(dims: Any, concrete: Any) -> tuple[int, float]:
        image, weight = dims[0], dims[1]
        steps, pads, holes = (_numbers(concrete[i]) for i in (stride, padding, dilation))
        out = [
            (side + 2 * pad - hole * (kernel - 1) - 1) // step + 1
            for side, kernel, step, pad, hole in zip(image[2:], weight[2:], steps, pads, holes, strict=True)
        ]
        return 0, 2.0 * image[0] * math.prod(out) * math.prod(weight)

    return rule


def _convolution_backward(dims: Any, concrete: Any) -> tuple[int, float]:
    """Gradients of input and of weight, each as much work as forward; the mask of outputs tells which are computed."""
    gradient, weight = dims[0], dims[2]
    mask = concrete[-1]
    mask = json.loads(mask.lower()) if isinstance(mask, str) and mask else [True, True]
    return 0, 2.0 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight) * sum(map(bool, mask[:2]))


def _convolution_backward_input(dims: Any, _: Any) -> tuple[int, float]:
    """Until torch 1.10: the gradient of the input alone, from the output's gradient and the weight."""
    gradient, weight = dims[1], dims[2]
    return 1, 2.0 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight)


_RULES = {
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "matmul": _product(0, 1),
    "addmm": _product(1, 2),
    "addmm_": _product(1, 2),
    "baddbmm": _product(1, 2),
    "_scaled_mm": _product(0, 1),
    "_int_mm": _product(0, 1),
    "linear": _linear,
    "convolution": _convolution(3, 4, 5),
    "_convolution": _convolution(3, 4, 5),
    "conv2d": _convolution(3, 4, 5),
    "cudnn_convolution": _convolution(3, 2, 4),
    "miopen_convolution": _convolution(4, 3, 5),
    "cudnn_convolution_backward_input": _convolution_backward_input,
    "convolution_backward": _convolution_backward,
}
