"""One registry names, chooses, logs and refuses every kernel; what is added to it is found by all that list kernels."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from made_kernels import registered

from fastvicreg.cli import main
from fastvicreg.doctor import kernel_finding, kernel_findings
from fastvicreg.errors import UserError
from fastvicreg.kernels import vicreg_loss
from fastvicreg.kernels.augment import parallel
from fastvicreg.kernels.cuda import Variant, build
from fastvicreg.kernels.dispatch import AUTO, KERNELS, Implementation, parse_choices, prebuilt
from fastvicreg.kernels.lars import foreach
from fastvicreg.kernels.loss import gram
from fastvicreg.kernels.norm import native
from fastvicreg.kernels.resample import numba_impl

MADE = {
    "loss": (gram, ("forward", "backward", "kept_shapes"), ""),
    "lars": (foreach, ("update",), ":update"),
    "augment": (parallel, ("augment",), ":augment"),
    "resample": (numba_impl, ("resample",), ":resample"),
    "norm": (native, ("batch_norm_act",), ":batch_norm_act"),
}
"""For each kernel: an implementation whose functions the made one borrows, and what its target names."""


def made(kernel: str) -> tuple[Implementation, ModuleType]:
    source, functions, suffix = MADE[kernel]
    module = ModuleType(f"made_{kernel}")
    for name in functions:
        setattr(module, name, getattr(source, name))
    return Implementation("made", module.__name__ + suffix), module


@pytest.fixture(params=sorted(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every kernel in turn, with an implementation "made" in its registry."""
    with registered(request.param, *made(request.param)):
        yield request.param


def test_every_kernel_of_the_registry_has_a_made_implementation_here() -> None:
    assert MADE.keys() == KERNELS.keys()


def test_a_made_implementation_is_named_on_the_command_line(kernel: str) -> None:
    assert parse_choices([f"{kernel}=made"]) == {**dict.fromkeys(KERNELS, AUTO), kernel: "made"}
    with pytest.raises(UserError, match="'mad'; did you mean 'made'"):
        parse_choices([f"{kernel}=mad"])


def test_doctor_tries_a_made_implementation(kernel: str) -> None:
    finding = kernel_finding(KERNELS[kernel], "made")
    assert (finding.kind, finding.name, finding.works) == ("kernel", f"{kernel}=made", True), finding
    assert (kernel, "made") in [(part, impl) for part, each in KERNELS.items() for impl in each.names]


def test_the_benchmark_and_the_check_measure_a_made_implementation(kernel: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    if kernel == "loss":
        from fastvicreg.profiles.bench import loss

        rows: list[dict[str, Any]] = loss.run(sizes=[(8, 16)], repeats=1)
    elif kernel == "lars":
        from fastvicreg.profiles.bench import lars

        rows = lars.run(shapes=[(4, 4), (4,)], repeats=1)
    elif kernel == "norm":
        from fastvicreg.profiles.bench import norm

        rows = norm.run(shapes=[(4, 16, 3, 3)], repeats=1)
    else:
        assert main(["bench", kernel, "--size", "16", "--repeats", "1", "--json", str(out)]) == 0
        rows = json.loads(out.read_text())["rows"]
    assert [row["ms"] > 0 for row in rows if row["impl"] == "made"]


def test_a_made_implementation_s_machine_code_goes_into_the_wheel() -> None:
    code = Variant("loss/made.cu", {"FACTOR": 2})
    implementation, module = made("loss")
    module.variants = lambda: [code]  # type: ignore[attr-defined]
    with registered("loss", Implementation("made", implementation.target, prebuilt=True), module):
        assert code in build.variants()
    assert code not in build.variants()


def test_an_obstacle_is_asked_of_what_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    implementation, module = made("loss")
    asked = []

    def obstacle(device: str, dtype: torch.dtype) -> str:
        asked.append((device, dtype))
        return "it is made of paper" if dtype == torch.float64 else ""

    module.obstacle = obstacle  # type: ignore[attr-defined]
    z_ND = torch.eye(4, 6)
    with registered("loss", implementation, module), caplog.at_level(logging.INFO, "fastvicreg.kernels.dispatch"):
        for _ in range(3):
            vicreg_loss(z_ND, z_ND, impl="made")
        with pytest.raises(UserError, match="'made' cannot run here: it is made of paper; choose auto or gram"):
            vicreg_loss(z_ND.double(), z_ND.double(), impl="made")
    assert asked == [("cpu", torch.float32), ("cpu", torch.float64)]
    assert [record.getMessage() for record in caplog.records] == ["loss kernel for float32 on cpu: made (as asked)"]


def test_auto_says_what_it_passed_over_and_refuses_where_nothing_runs(caplog: pytest.LogCaptureFixture) -> None:
    implementation, module = made("loss")
    module.obstacle = lambda device, dtype: "it rests"  # type: ignore[attr-defined]
    kernel = type(KERNELS["loss"])(
        "loss", [Implementation("made", implementation.target, auto_on="any"), Implementation("gram", gram.__name__)],
        trial="",
    )  # fmt: skip
    with registered("loss", implementation, module), pytest.raises(UserError, match="not made: it rests"):
        kernel.choose("auto", "cpu", torch.float32)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["los=gram"], "'los'; did you mean 'loss'"),
        (["loss=gramm"], "'gramm'; did you mean 'gram'"),
        (["loss"], "'loss' is no part=implementation"),
        (["loss="], "'loss=' is no part=implementation"),
        (["loss=gram", "loss=reference"], "names loss twice"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_way_out(entries: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_choices(entries)


def test_a_wrong_choice_is_refused_before_data_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(tmp_path / "none"), "--kernel", "resample=numbs"]) == 2
    error = capsys.readouterr().err
    assert "'numbs'; did you mean 'numba'" in error
    assert "none" not in error


def test_the_registry_imports_no_torch_and_every_line_of_it_is_a_module() -> None:
    code = "import sys, fastvicreg.kernels.dispatch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for each in (each for kernel in KERNELS.values() for each in kernel.implementations.values()):
        if not each.obstacle("cpu", torch.float32).endswith("is not installed"):
            assert each.module().__name__ == each.target.partition(":")[0]
    assert [module.__name__.split(".")[-2] for module in prebuilt()] == ["loss", "lars", "augment"]


def test_doctor_lists_every_implementation_and_requires_what_auto_takes_on_a_cpu() -> None:
    findings = {finding.name: finding for finding in kernel_findings()}
    assert findings.keys() == {f"{part}={impl}" for part, kernel in KERNELS.items() for impl in kernel.names}
    for name in ("loss=gram", "lars=foreach", "augment=numba", "resample=numba", "norm=native", "loss=reference"):
        assert (findings[name].works, findings[name].needed) == (True, True), findings[name]
