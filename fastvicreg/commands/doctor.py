"""``fastvicreg doctor``: what works here, what does not, why, and the command that adds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastvicreg.commandline import parse


@dataclass(frozen=True)
class DoctorOptions:
    """Report on devices, pipelines, kernels and optional packages."""

    json: str | None = None
    """Write the findings to this file."""


def main(arguments: Sequence[str]) -> int:
    """Print the findings; returns 1 where training on this machine is impossible."""
    options = parse(DoctorOptions, arguments, "doctor")

    from fastvicreg.doctor import examine, show_findings

    findings = examine()
    show_findings(findings)
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document("doctor", [vars(finding) for finding in findings], 1))
    return 0 if all(finding.works for finding in findings if finding.needed) else 1
