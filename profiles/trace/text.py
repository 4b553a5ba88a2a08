"""Summaries and differences as a person reads them: tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastvicreg.errors import visible
from fastvicreg.profiles.trace.device import counted
from fastvicreg.profiles.trace.gaps import CAUSES, LABELS
from fastvicreg.profiles.trace.ranks import straggler
from fastvicreg.profiles.trace.summary import Summary

TOP = 10
"""Kernels and operators shown; ``--json`` has twenty."""
_NAME_WIDTH = 70


def console() -> Console:
    """As wide as the terminal; a pipe has no width: wide enough that no figure is cut."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def show_summary(summary: Summary, out: Console) -> None:
    """Head line, verdict, then the tables that the trace has content for, and at the end what it does not contain."""
    line(out, "")
    line(out, head(summary), "bold")
    line(out, summary.verdict.text, "bold yellow")
    for note in notes(summary):
        line(out, note, "dim")
    out.print(_stages(summary))
    if summary.device_shares and summary.idle_by:
        out.print(_device(summary))
    if summary.communication:
        out.print(_communication(summary))
    if summary.host and summary.verdict.bound != "unknown":
        out.print(_host(summary))
    if summary.kernels:
        out.print(_kernels(summary))
    if summary.operators:
        out.print(_operators(summary))
    if len(summary.threads) > 1:
        out.print(_threads(summary))
    if summary.workers:
        out.print(_workers(summary))
    if summary.memory:
        peaks = ", ".join(f"{name} {use.peak / 2**20:,.1f} MiB" for name, use in summary.memory.items())
        line(out, f"memory at the peak: {peaks}")
    if summary.missing:
        line(out, "what this trace does not contain:", "bold")
        for absent in summary.missing:
            line(out, f"  {absent}", "dim")


def head(summary: Summary) -> str:
    """File, device and step time in one line."""
    trace, ms = summary.trace, summary.step_ms
    where = summary.device.name or "a device without a name" if summary.device else "host only"
    if len(summary.devices) > 1:
        where = f"{len(summary.devices)} x {where}"
    rank = "" if trace.rank is None else f", rank {trace.rank}"
    count = len(summary.steps.names)
    steps = f"{count} step{'s' * (count != 1)}: p50 {ms['p50']:,.2f} ms, p95 {ms['p95']:,.2f} ms"
    if summary.steps.source == "trace":
        steps = f"the whole trace as one span of {ms['p50']:,.2f} ms"
    device = summary.device_step_ms
    if device and abs(device["p50"] - ms["p50"]) > 0.01 * ms["p50"]:
        steps += f"; {device['p50']:,.2f} ms until the device has done what a step launched"
    return f"{visible(trace.path.name)} ({where}{rank}): {steps}"


def notes(summary: Summary) -> list[str]:
    """What the reader must know about how the figures came about."""
    found = list(summary.trace.faults)
    steps = summary.steps
    if steps.source == "trace":
        hint = next((f'; --steps-by "{name}" takes them from this annotation' for name in summary.step_marks), "")
        found.append(
            f"no step is marked in this trace (neither ProfilerStep nor fv.data_wait): shares are of the whole{hint}."
        )
    if steps.apart:
        said = ", ".join(f"{step.name} {step.ms:,.2f} ms ({step.why})" for step in steps.apart[:4])
        more = f" and {len(steps.apart) - 4} more" if len(steps.apart) > 4 else ""
        found.append(f"figures are of the typical steps; left out: {said}{more}.")
    if summary.stages.derived:
        found.append(f"derived from operators, not annotated: {', '.join(sorted(summary.stages.derived))}.")
    if len(summary.devices) > 1:
        working = {device.number for device in counted(summary.devices)}
        parts = [
            f"device {device.number} busy {device.busy_us / steps.windows.total:.1%}"
            + ("" if device.number in working else " (not counted)")
            for device in summary.devices
        ]
        found.append(f"shares are means over the devices: {', '.join(parts)}.")
    if summary.trace.foreign:
        parts = ", ".join(f"{name} ({count:,} events)" for name, count in summary.trace.foreign.items())
        found.append(f"categories that are not known: {parts}; with a device or stream they count as its work.")
    if summary.trace.dropped:
        found.append(f"{summary.trace.dropped:,} events left out: malformed, of negative length or without a time.")
    return found


def show_overview(summaries: Sequence[Summary], out: Console) -> None:
    """One line a file, and which rank the others wait for."""
    table = Table(title="traces", title_justify="left")
    for column in ("file", "rank", "steps", "p50 ms", "p95 ms", "compute", "comm", "copy", "idle", "bound"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for summary in summaries:
        shares = summary.device_shares or {}
        parts = [f"{shares[part]:.0%}" if shares else "-" for part in ("compute", "comm", "copy", "idle")]
        rank = "-" if summary.trace.rank is None else str(summary.trace.rank)
        ms = summary.step_ms
        table.add_row(
            Text(visible(summary.trace.path.name)),
            rank,
            str(len(summary.steps.names)),
            f"{ms['p50']:,.2f}",
            f"{ms['p95']:,.2f}",
            *parts,
            summary.verdict.bound,
        )
    out.print(table)
    if waited := straggler(summaries):
        line(out, waited, "bold yellow")


def _stages(summary: Summary) -> Table:
    table = Table(title="stages of a step", title_justify="left")
    for column in ("stage", "host ms", "share", "", *(("device ms launched",) if summary.device else ())):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    mean = float(summary.steps.ms.mean())
    for name, share in summary.stage_shares.items():
        launched = [f"{summary.stage_device_ms.get(name, 0.0):,.2f}"] if summary.device else []
        table.add_row(Text(cut(name)), f"{share * mean:,.2f}", f"{share:.1%}", "█" * round(share * 30), *launched)
    return table


def _device(summary: Summary) -> Table:
    assert summary.device_shares is not None
    assert summary.idle_by is not None
    assert summary.gaps is not None
    table = Table(title="the device in a step", title_justify="left")
    for column in ("", "share", "", "most of it in"):
        table.add_column(column, justify="right" if column == "share" else "left")
    for name, share in summary.device_shares.items():
        table.add_row(name if name != "comm" else "comm, exposed", f"{share:.1%}", "█" * round(share * 30), "")
    total = summary.steps.windows.total
    for cause in CAUSES:
        share, (blamed, us) = summary.idle_by[cause], summary.gaps.blamed.get(cause, ("", 0.0))
        if not share and cause in ("alloc", "startup", "unknown"):
            continue
        what = f"{cut(blamed)} ({us / total:.1%} of the step)" if blamed and share else ""
        table.add_row(f"  idle: {LABELS[cause]}", f"{share:.1%}", "▒" * round(share * 30), Text(what))
    for device in summary.devices:
        number = f"device {device.number}, " if len(summary.devices) > 1 else ""
        for stream in device.streams:
            table.add_row(f"  {number}{stream.name}", f"{stream.busy_us / total:.1%}", "", f"{stream.events:,} events")
    return table


def _communication(summary: Summary) -> Table:
    found, total = summary.communication, summary.steps.windows.total
    assert found is not None
    title = (
        f"communication: exposed {found.exposed_us / total:.1%} and hidden {found.hidden_us / total:.1%} of the step, "
        f"{found.overlap:.0%} hidden"
    )
    table = Table(title=title, title_justify="left")
    for column in ("collective", "calls", "ms a step", "MB a call", "GB/s"):
        table.add_column(column, justify="left" if column == "collective" else "right", overflow="fold")
    for row in found.collectives[:TOP]:
        size = "-" if row.bytes is None else f"{row.bytes / 1e6:,.3f}"
        rate = "-" if row.gb_per_s is None else f"{row.gb_per_s:,.1f}"
        per_step = row.ms / len(summary.steps.names)
        table.add_row(Text(cut(row.name)), f"{row.calls:,}", f"{per_step:,.3f}", size, rate)
    return table


def _host(summary: Summary) -> Table:
    assert summary.host is not None
    table = Table(title="the host in a step", title_justify="left")
    for column in ("", "share", ""):
        table.add_column(column, justify="right" if column == "share" else "left")
    for name, share in summary.host.shares.items():
        label = "Python between operators" if name == "python" else "communication" if name == "comm" else name
        table.add_row(label, f"{share:.1%}", "█" * round(share * 30))
    return table


def _threads(summary: Summary) -> Table:
    table = Table(title="threads that run operators", title_justify="left")
    for column in ("thread", "operators", "ms a step", "share"):
        table.add_column(column, justify="left" if column == "thread" else "right")
    count, total = len(summary.steps.names), summary.steps.windows.total / 1e3
    for row in summary.threads[:TOP]:
        table.add_row(Text(cut(row.name)), f"{row.operators:,}", f"{row.ms / count:,.3f}", f"{row.ms / total:.1%}")
    return table


def _kernels(summary: Summary) -> Table:
    table = Table(title=f"kernels: {min(TOP, len(summary.kernels))} of {len(summary.kernels)}", title_justify="left")
    for column in ("kernel", "share", "count", "mean us", "ms a step", "of peak"):
        table.add_column(column, justify="left" if column == "kernel" else "right", overflow="fold")
    for row in summary.kernels[:TOP]:
        roofline = "-" if row.roofline is None else f"{row.roofline:.0%}"
        per_step = row.ms / len(summary.steps.names)
        table.add_row(
            Text(cut(row.name)),
            f"{row.share:.1%}",
            f"{row.calls:,}",
            f"{row.mean_us:,.1f}",
            f"{per_step:,.3f}",
            roofline,
        )
    return table


def _workers(summary: Summary) -> Table:
    table = Table(title="the engine's threads, beside the step", title_justify="left")
    for column in ("work", "threads", "calls", "ms a call", "ms a step, all threads"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for row in summary.workers:
        per_step = row.ms / len(summary.steps.names)
        table.add_row(row.name, str(row.threads), f"{row.calls:,}", f"{row.ms / row.calls:,.3f}", f"{per_step:,.2f}")
    return table


def _operators(summary: Summary) -> Table:
    shown = summary.operators[:TOP]
    table = Table(title=f"operators: {len(shown)} of {len(summary.operators)}", title_justify="left")
    for column in (
        "operator",
        "calls",
        "own host ms a step",
        "share",
        *(("device ms a step",) if summary.device else ()),
    ):
        table.add_column(column, justify="left" if column == "operator" else "right", overflow="fold")
    count = len(summary.steps.names)
    for row in shown:
        device = [f"{row.device_ms / count:,.3f}"] if summary.device else []
        table.add_row(
            Text(cut(row.name)), f"{row.calls:,}", f"{row.host_ms / count:,.3f}", f"{row.host_share:.1%}", *device
        )
    return table


def cut(name: str) -> str:
    """A name that fits a column."""
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."


def line(out: Console, text: str, style: str = "") -> None:
    """Print a line that a pipe does not break."""
    out.print(Text(text, style), soft_wrap=True)
