"""A file of figures replaces earlier figures, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastvicreg.cli import main
from fastvicreg.provenance import require_figures, write_json


@pytest.mark.parametrize("asked", ["verify {}", "advise --data {}", "trace summary {}", "doctor", "bench plan"])
def test_figures_replace_earlier_figures_and_nothing_else(
    asked: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number, content in enumerate((b"\x80\0\0\0 a dataset", b'{\n  "schemaVersion": 1, "traceEvents": []}')):
        data = tmp_path / f"data{number}"
        data.write_bytes(content)
        assert main([*asked.format(data).split(), "--json", str(data)]) == 2
        assert f"--json {data} exists and holds no figures" in capsys.readouterr().err
        assert data.read_bytes() == content
    earlier = tmp_path / "earlier.json"
    write_json(earlier, {"command": "verify"})
    require_figures(earlier)
