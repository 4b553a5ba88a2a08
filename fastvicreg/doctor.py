"""Findings about this machine: each part is really run once, not merely imported."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastvicreg.caches import cache_folder, own_folder
from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS, Kernel
from fastvicreg.pipelines.engines import ENGINES


@dataclass(frozen=True)
class Finding:
    """One part: whether it works here, what was seen, and the command that adds it where it does not."""

    kind: str
    name: str
    works: bool
    seen: str
    remedy: str = ""
    needed: bool = False


PIP_REMEDY = "in the checkout: pip install --force-reinstall ."
FFCV_REMEDY = (
    "in a checkout: make ffcv; "
    "Debian, Ubuntu: sudo apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++ && pip install ffcv==1.0.2; "
    "conda-forge: conda install -c conda-forge 'opencv<5' libjpeg-turbo pkg-config cxx-compiler && "
    "pip install ffcv==1.0.2"
)
DALI_REMEDY = "pip install nvidia-dali-cuda130"


def examine() -> list[Finding]:
    """Try every device, pipeline and kernel once, on data made here."""
    return [
        *_machine(),
        cache_finding(),
        *_devices(),
        *map(pipeline_finding, ENGINES),
        *kernel_findings(),
        *cuda_findings(),
        *_packages(),
    ]


def show_findings(findings: list[Finding], console: Console | None = None) -> None:
    """Print one table."""
    table = Table(title="fastvicreg doctor", title_justify="left")
    for column in ("part", "", "what was seen", "to add it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]works[/]" if finding.works else ("[red]fails[/]" if finding.needed else "[yellow]not here[/]")
        table.add_row(f"{finding.kind} {finding.name}", mark, finding.seen, "" if finding.works else finding.remedy)
    (console or Console()).print(table)


def _machine() -> list[Finding]:
    cores, free = len(os.sched_getaffinity(0)), shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    python = platform.python_version()
    return [
        Finding("machine", platform.machine(), True, f"{cores} cores, {free:.0f} GiB free for temporary files"),
        Finding("python", python, sys.version_info >= (3, 11), "needs 3.11 or later", needed=True),
        Finding("torch", torch.__version__, True, f"{torch.get_num_threads()} threads, built for "
                f"{'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU only'}", needed=True),
    ]  # fmt: skip


def cache_finding() -> Finding:
    """Whether what is kept between runs (compiled kernels, indices, embedded images) lies in a folder that stays."""
    folder = cache_folder()
    # By blocks: the structure of remote files is kept as files with holes.
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    stays = folder == own_folder()
    seen = f"{folder}, {size / 2**20:.0f} MiB" + ("" if stays else ": temporary, no home can be written")
    return Finding("caches", "folder", stays, seen, "set XDG_CACHE_HOME to a folder that can be written and stays")


def _devices() -> list[Finding]:
    remedy = "install an NVIDIA driver, and torch with CUDA: pip install torch"
    if not torch.cuda.is_available():
        return [Finding("device", "cuda", False, "torch finds no CUDA device", remedy)]
    return [
        Finding("device", f"cuda:{i}", True, f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")
        for i in range(torch.cuda.device_count())
        for p in [torch.cuda.get_device_properties(i)]
    ]


def _attempt(
    kind: str, name: str, action: Callable[[], str], *, remedy: str = PIP_REMEDY, needed: bool = True
) -> Finding:
    try:
        return Finding(kind, name, True, action(), needed=needed)
    except UserError as error:
        return Finding(kind, name, False, str(error), remedy, needed)
    except Exception as error:  # a diagnosis reports whatever went wrong
        return Finding(kind, name, False, f"{type(error).__name__}: {error}", remedy, needed)


def pipeline_finding(name: str) -> Finding:
    """Whether the pipeline ``name`` delivers a batch here, of four images written for it."""
    optional = {"ffcv": FFCV_REMEDY, "dali": DALI_REMEDY}
    deliver = deliver_apart if name == "dali" else deliver_batch  # what DALI does not like may end its process
    return _attempt(
        "pipeline", name, lambda: deliver(name), remedy=optional.get(name, PIP_REMEDY), needed=name not in optional
    )


APART = """
import sys
from fastvicreg.doctor import deliver_batch
from fastvicreg.errors import UserError
try:
    print(deliver_batch({name!r}))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def deliver_apart(name: str, seconds: float = 300.0) -> str:
    """``deliver_batch`` in a process of its own; its ``UserError``, or ``RuntimeError`` where that ends otherwise."""
    code = APART.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["nothing"]
    if done.returncode == 2:
        raise UserError(said[-1])
    if done.returncode:
        raise RuntimeError(f"its process ended with {done.returncode} and said: {said[-1]}")
    return said[-1]


def deliver_batch(name: str) -> str:
    """What the pipeline ``name`` delivers of four images written here; on the GPU where dali has one."""
    from PIL import Image

    from fastvicreg.contracts import Cursor
    from fastvicreg.pipelines import build_engine, open_source
    from fastvicreg.pipelines.convert.run import convert_dataset
    from fastvicreg.pipelines.convert.settings import Settings
    from fastvicreg.pipelines.plan import train_plan
    from fastvicreg.pipelines.recipes import named_recipe

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images"
        data.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
        for number in range(4):
            Image.fromarray(pixels).save(data / f"{number}.jpg")
        if name == "ffcv":
            data = convert_dataset(data, Path(folder) / "images.beton").path
        elif name == "dali":
            data = convert_dataset(data, Path(folder) / "shards", Settings(format="dali")).path
        source = open_source(data)
        plan = train_plan(len(source), seed=0, recipe=named_recipe("official"), image_size=32)
        device = "cuda" if name == "dali" and torch.cuda.is_available() else "cpu"
        engine = build_engine(name, source, plan, batch_size=4, workers=1, device=device)
        try:
            crops = next(iter(engine.batches(Cursor(0, 0))))
        finally:
            engine.close()
    return f"delivered {tuple(crops.crops_BVHWC.shape)} uint8 on {crops.crops_BVHWC.device}"


def kernel_findings() -> list[Finding]:
    """Every implementation of every kernel, run once where it can run: on the CPU, else on a GPU."""
    return [kernel_finding(kernel, impl) for kernel in KERNELS.values() for impl in kernel.names]


def kernel_finding(kernel: Kernel, impl: str) -> Finding:
    """Whether that implementation works here; what "auto" takes on the CPU has to."""
    implementation = kernel.implementations[impl]
    needed = impl == "reference" or implementation.auto_on in ("cpu", "any")

    def tried() -> str:
        try:
            return kernel.trial(impl, "cpu")
        except UserError:
            if not torch.cuda.is_available():
                raise
            return kernel.trial(impl, "cuda")

    remedy = PIP_REMEDY if needed else implementation.remedy
    return _attempt("kernel", f"{kernel.name}={impl}", tried, remedy=remedy, needed=needed)


def cuda_findings() -> list[Finding]:
    """What the CUDA kernels need: bindings, machine code in the wheel, or a compiler. None of it is required."""
    from fastvicreg.kernels.cuda import ARCHITECTURES, INSTALL, compile_cubin, prebuilt

    def bindings() -> str:
        import_module("cuda.core")
        return f"cuda-core {_version('cuda-core')}, cuda-bindings {_version('cuda-bindings')}: load and launch kernels"

    def compiled() -> str:
        sizes = [len(compile_cubin("lars/lars.cu", arch).code) for arch in ARCHITECTURES]
        return f"lars.cu for {', '.join(ARCHITECTURES)}: {sum(sizes) / 2**10:.0f} KiB"

    parts = (
        ("bindings", bindings, prebuilt.INSTALL_BINDINGS),
        ("prebuilt", prebuilt.summary, "in a checkout: make wheel; pip install the file it makes"),
        ("compiler", compiled, INSTALL),
    )
    return [_attempt("cuda", name, action, remedy=remedy, needed=False) for name, action, remedy in parts]


def _packages() -> list[Finding]:
    extras = {
        "nvidia.dali": ("nvidia-dali-cuda130", "decodes on the GPU, for --pipeline dali"),
        "triton": ("triton", "compiles GPU kernels; comes with torch for CUDA"),
        "torch_tb_profiler": ("torch-tb-profiler", "TensorBoard's view of profiler traces"),
        "pyarrow": ("pyarrow", "reads parquet and arrow files of images, and .tar.zst, for convert"),
        "onnxscript": ("onnxscript", "writes ONNX, with onnx and onnxruntime, for export --to onnx"),
        "wandb": ("wandb", "Weights & Biases, for train --log wandb"),
        "mlflow": ("mlflow-skinny", "MLflow's client, for train --log mlflow"),
        "amp_C": ("apex (NVIDIA's, from its repository)", "PyPI's apex is another program: do not install that one"),
    }
    findings = []
    for module, (package, use) in extras.items():
        try:
            found = util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        name = package.split(" ")[0]
        seen = f"{_version(name)}: {use}" if found else use
        findings.append(Finding("package", name, found, seen, f"pip install {package}" if name != "apex" else package))
    return findings


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "installed"
