"""What CI says of the pinned packages: vulnerabilities by name, what could not be asked, and never a failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
SOUND: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
HOLED: dict[str, Any] = {
    "name": "b",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (
            [SOUND, HOLED, UNKNOWN],
            [
                "audit: b 2: PYSEC-1 (fixed in 2.1 or 3), PYSEC-2 (fixed in none)",
                "audit: 1 of 2 packages have known vulnerabilities; 1 could not be asked about",
            ],
        ),
        ([SOUND], ["audit: 0 of 1 packages have known vulnerabilities"]),
        ([UNKNOWN], ["audit: PyPI could not be asked about any of the 1 packages in constraints.txt"]),
        (None, ["audit: constraints.txt could not be asked about (JSONDecodeError)"]),
    ],
)
def test_the_audit_reports_and_never_fails(packages: list[Any] | None, said: list[str], tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    text = "no network" if packages is None else json.dumps({"dependencies": packages})
    program.write_text(f"#!{sys.executable}\nprint({text!r})\nraise SystemExit(1)\n")
    program.chmod(0o755)
    ran = subprocess.run([sys.executable, AUDIT, program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == said
