"""Triton's kernels compiled for a GPU that is not at hand, into a cache that a machine which has one takes along.

``python -m fastvicreg.profiles.bench.ahead FOLDER`` in a process of its own: Triton is given a driver that only names
the architecture, and every launch compiles without launching. What is called are the implementations themselves, on
tensors that are never written, so that the cache's keys are those of real calls.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fastvicreg.errors import UserError

PLACE = "@FOLDER@"
"""Stands for the cache's folder in its files, which name each other by whole paths."""
KEPT = (".cubin", ".json")
HALF = (torch.bfloat16, torch.float16)
TESTED = ((5, 5), (64, 512), (128, 64), (257, 1000))
"""Sizes of the loss in the tests that wait for a GPU (tests/kernels/test_loss.py)."""


class Named:
    """A driver for Triton that knows the architecture and runs nothing."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def fill(
    folder: Path, launched: Iterable[Callable[[], None]], capability: int = 90, *, key_of: Path | None = None
) -> int:
    """Compile into ``folder`` what ``launched`` launch; returns how many kernels it then holds.

    ``key_of`` is a wheel of the same Triton for another Python, whose cache it is to be: the key of an entry holds a
    hash of Triton's own files. ``UserError`` where Triton is not installed, or the wheel is of another version.
    """
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        import triton
        from triton.runtime import cache, driver, jit
    except ImportError as error:
        raise UserError(f"compiling Triton's kernels needs Triton ({error}): pip install triton.") from error
    if key_of is not None:
        key = key_of_wheel(key_of, triton.__version__)
        cache.triton_key = lambda: key  # looked up there at each call
    driver.set_active(Named(capability))  # pyright: ignore[reportArgumentType]
    run = jit.JITFunction.run

    def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(self, *arguments, grid=grid, warmup=True, **options)

    jit.JITFunction.run = compiled  # pyright: ignore[reportAttributeAccessIssue]
    for call in launched:
        call()
    return sum(1 for _ in folder.rglob("*.cubin"))


def strip(folder: Path) -> None:
    """Leave machine code and what describes it, and take the cache's own place out of it, so that it can travel."""
    for path in folder.rglob("__grp__*.json"):
        group = json.loads(path.read_text())
        kept = {
            name: f"{PLACE}/{Path(file).relative_to(folder)}"
            for name, file in group["child_paths"].items()
            if name.endswith(KEPT)
        }
        path.write_text(json.dumps({**group, "child_paths": kept}))
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(KEPT):
            path.unlink()


def relocate(folder: Path) -> None:
    """Make a cache that was stripped one of ``folder``, where it lies now."""
    for path in folder.rglob("__grp__*.json"):
        path.write_text(path.read_text().replace(PLACE, json.dumps(str(folder))[1:-1]))


def key_of_wheel(wheel: Path, version: str) -> str:
    """What ``triton.runtime.cache.triton_key`` gives where ``wheel`` is installed."""
    from triton.runtime import cache

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        if f"triton-{version}.dist-info/METADATA" not in archive.namelist():
            raise UserError(f"{wheel.name} is not of Triton {version}, which is installed here: install the wheel's.")
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("triton/")])
        own = cache.triton_key.__wrapped__
        there = {**vars(cache), "__file__": str(Path(folder, "triton", "runtime", "cache.py"))}
        return types.FunctionType(own.__code__, there)()


def calls() -> Iterator[Callable[[], None]]:
    """A forward and backward pass for all that ``bench all``, training and the GPU tests launch on a GPU by Triton."""
    from fastvicreg.profiles.bench import correctness, loss, train
    from fastvicreg.profiles.bench.norm import default_shapes

    obstacles_away()
    shapes = [*default_shapes("cuda"), *correctness.NORM_SHAPES["cuda"], *correctness.NORM_SHAPES["small"]]
    shapes += [(2 * train.BATCH, channels, side, side) for channels, side in ((16, 16), (32, 8), (64, 4), (128, 2))]
    shapes += [(2 * train.BATCH, 256)]
    dtypes = (*HALF, torch.float32)
    for shape, dtype, views, added in itertools.product(dict.fromkeys(shapes), dtypes, (2, 1), (True, False)):
        if added <= (len(shape) == 4):
            yield lambda shape=shape, dtype=dtype, views=views, added=added: norm(shape, dtype, views, added=added)
        if not added:  # as on a ResNet's shortcut
            yield lambda shape=shape, dtype=dtype, views=views: norm(shape, dtype, views, added=False, relu=False)
    sizes = dict.fromkeys(
        (*loss.DEFAULT_SIZES["cuda"], *correctness.SIZES["cuda"], *correctness.SIZES["small"], *TESTED)
    )
    for (n, d), dtype in itertools.product(sizes, dtypes):
        yield lambda n=n, d=d, dtype=dtype: _loss(n, d, dtype)


def obstacles_away() -> None:
    """Nothing is launched: that the tensors lie on a CPU is no obstacle."""
    from fastvicreg.kernels.dispatch import KERNELS

    for module in ("loss.fused", "loss.triton_impl", "norm.triton_impl"):
        setattr(import_module(f"fastvicreg.kernels.{module}"), "obstacle", lambda device, dtype: "")  # noqa: B010
    for name in ("loss", "norm"):
        KERNELS[name].choose.cache_clear()


def norm(shape: tuple[int, ...], dtype: torch.dtype, views: int, *, added: bool, relu: bool = True) -> None:
    """A pass through that layer, and back."""
    from fastvicreg.kernels.norm import Options, batch_norm_act

    # Never written, and so never in memory.
    x = torch.empty(shape, dtype=dtype)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last) if x.numel() < 1 << 16 else _channels_last(shape, dtype)
    x.requires_grad_()
    residual = torch.empty_like(x).requires_grad_() if added else None
    weight_C, bias_C = (torch.ones(shape[1]).requires_grad_() for _ in range(2))
    running = torch.zeros(shape[1]), torch.ones(shape[1])
    for state in (running, None):
        y = batch_norm_act(
            *(x, weight_C, bias_C),
            residual=residual,
            running=state,
            options=Options(relu=relu, views=views),
            impl="triton",
        )
    wanted = [each for each in (x, weight_C, bias_C, residual) if each is not None]
    torch.autograd.grad(y, wanted, torch.empty_like(y))


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    batch, channels, height, width = shape
    return torch.empty((batch, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


def _loss(n: int, d: int, dtype: torch.dtype) -> None:
    from fastvicreg.kernels.loss import vicreg_loss

    za_ND, zb_ND = (torch.empty(n, d, dtype=dtype).requires_grad_() for _ in range(2))
    torch.autograd.grad(vicreg_loss(za_ND, zb_ND, impl="triton").total, (za_ND, zb_ND))


def main(arguments: Sequence[str]) -> int:
    """``FOLDER [WHEEL [SHARE SHARES]]``, ``--strip FOLDER`` or ``--relocate FOLDER``; exit 2 with one line."""
    if arguments[0] in ("--strip", "--relocate"):
        {"--strip": strip, "--relocate": relocate}[arguments[0]](Path(arguments[1]).resolve())
        return 0
    folder = Path(arguments[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    share, shares = map(int, arguments[2:4]) if len(arguments) > 2 else (0, 1)
    try:
        launched = itertools.islice(calls(), share, None, shares)
        count = fill(folder, launched, key_of=Path(arguments[1]) if len(arguments) > 1 else None)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{count} kernels of Triton for sm_90")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
