"""``bench compare`` tells a regression from the noise of two results, and refuses what does not compare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastvicreg.cli import main
from fastvicreg.profiles.bench.registry import BENCHMARKS, SWAP, Benchmark, benchmark

HARDWARE = {"cpu": "made", "cores": 2, "gpus": [], "system": "Linux"}


def result(path: Path, rows: list[dict[str, Any]], **changed: Any) -> str:
    """A result of ``bench resample`` with these rows, written to ``path``."""
    content = {"command": "bench resample", "commit": "c", "versions": {}, "hardware": HARDWARE, "n": 5, "rows": rows}
    path.write_text(json.dumps(content | changed))
    return str(path)


def row(impl: str, ms: float, spread: float = 0.01, size: int = 224) -> dict[str, Any]:
    return {"impl": impl, "size": size, "ms": ms, "spread": spread, "max_error": 0}


@pytest.mark.parametrize(
    ("new_ms", "spread", "limit", "code", "verdict"),
    [
        (1.10, 0.01, ["--fail-above", "5%"], 1, "REGRESSION"),
        (1.10, 0.01, ["--fail-above", "15%"], 0, "slower"),
        (1.10, 0.01, [], 0, "slower"),
        (1.10, 0.20, ["--fail-above", "5%"], 0, "within noise"),
        (0.80, 0.01, ["--fail-above", "5%"], 0, "faster"),
        (1.00, 0.01, ["--fail-above", "0"], 0, "within noise"),
    ],
)
def test_a_row_fails_where_it_is_slower_than_limit_and_noise(
    new_ms: float, spread: float, limit: list[str], code: int, verdict: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    old = result(tmp_path / "old.json", [row("numba", 1.0, spread), row("gone", 1.0)])
    new = result(tmp_path / "new.json", [row("numba", new_ms, spread), row("other", 9.0)])
    assert main(["bench", "compare", old, new, *limit]) == code
    printed = capsys.readouterr().out
    assert verdict in printed
    assert "numba, 224" in printed
    assert "gone" not in printed


def test_of_a_rate_less_is_slower(tmp_path: Path) -> None:
    paths = []
    for name, rate in (("old", 100.0), ("new", 80.0)):
        rows = [{"pipeline": "native", "workers": 1, "images_per_cpu_s": rate, "spread": 0.02}]
        paths.append(result(tmp_path / f"{name}.json", rows, command="bench loader"))
    assert main(["bench", "compare", *paths, "--fail-above", "5%"]) == 1
    assert main(["bench", "compare", *reversed(paths), "--fail-above", "5%"]) == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hardware": HARDWARE | {"cpu": "other"}}, "other hardware, cpu made against other"),
        ({"command": "bench loss"}, "'bench resample'"),
        ({"command": "doctor"}, "only those of fastvicreg bench PART compare"),
        ({"rows": [row("numba", 1.0, size=96)]}, "no row in common, by impl, size"),
        ({"rows": 3}, "is no benchmark's result"),
        ({"rows": ["x"]}, "is no benchmark's result"),
    ],
)
def test_what_does_not_compare_is_one_line(
    changed: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(tmp_path / "old.json", [row("numba", 1.0)])
    new = result(tmp_path / "new.json", **{"rows": [row("numba", 1.0)], **changed})
    assert main(["bench", "compare", old, new]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("text", "said"), [(None, "cannot read the result"), ("{", "holds no JSON"), ("[1]", "is no")])
def test_a_file_that_is_no_result_is_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = result(tmp_path / "old.json", [row("numba", 1.0)])
    if text is not None:
        (tmp_path / "new.json").write_text(text)
    assert main(["bench", "compare", old, str(tmp_path / "new.json")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_limit_that_is_no_percentage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "a", "b", "--fail-above", "lots"]) == 2
    assert "--fail-above lots: give a percentage" in capsys.readouterr().err


def test_every_benchmark_describes_itself() -> None:
    for name in BENCHMARKS | SWAP:
        found = benchmark(name, BENCHMARKS | SWAP)
        assert set(found.key) <= set(found.columns) | {"device"}, name
        if name != "correctness":
            assert found.figure in found.columns, name


def test_a_made_benchmark_is_one_module_and_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ModuleType("fastvicreg.profiles.bench.made")
    made.BENCHMARK = Benchmark(lambda repeats: [{"what": "made", "ms": 2.0 * repeats}], ("what", "ms"), ("what",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(BENCHMARKS, "made", "a made benchmark")
    paths = [str(tmp_path / f"{repeats}.json") for repeats in (1, 2)]
    for repeats, path in enumerate(paths, 1):
        assert main(["bench", "made", "--repeats", str(repeats), "--json", path]) == 0
    assert main(["bench", "compare", *paths, "--fail-above", "50%"]) == 1
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "a made benchmark" in capsys.readouterr().out
    assert main(["bench", "made", "--device", "cpu"]) == 2
    assert "--device" in capsys.readouterr().err


def test_provenance_imports_no_torch() -> None:
    code = "import sys, fastvicreg.provenance, fastvicreg.profiles.bench.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
