"""``fastvicreg trace {summary,diff,top,html,open}``: what held a run back by its trace, and what changed since."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastvicreg.commandline import parse, part_named, share
from fastvicreg.errors import UserError, visible
from fastvicreg.registry import unknown

if TYPE_CHECKING:
    from fastvicreg.profiles.trace.summary import Summary

ALL_SHOWN = 3
"""Of more traces than these only the slowest is shown whole."""


@dataclass(frozen=True)
class SummaryOptions:
    """Step time, stages, what the device did and why it was idle, kernels, operators, memory, and a verdict."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Traces of torch.profiler (.json, .json.gz), or folders of them: one a rank."""
    steps_by: str | None = None
    """Annotation that marks steps, from the start of one to that of the next."""
    comm: str | None = None
    """Regular expression of further kernels that communicate."""
    json: str | None = None
    """Write the figures to this file."""
    plot: str | None = None
    """Draw the breakdown into this file (.png or .svg); of more than three traces the slowest one's."""


@dataclass(frozen=True)
class DiffOptions:
    """What changed from trace A to trace B, by step, stage, operator and kernel, beyond the noise over their steps."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The trace before."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The trace after."""
    fail_above: str | None = None
    """Exit with 1 where a step of B takes longer by more than this, such as 5%, and beyond the noise."""
    steps_by: str | None = None
    """Annotation that marks steps, from the start of one to that of the next."""
    comm: str | None = None
    """Regular expression of further kernels that communicate."""
    json: str | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class TopOptions:
    """The Python functions, operators or kernels that take longest, with what they call and without."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A trace of torch.profiler (.json, .json.gz)."""
    by: str = "operator"
    """python (where stacks were recorded), operator or kernel."""
    count: int = 20
    """Rows shown; --json has all."""
    steps_by: str | None = None
    """Annotation that marks steps, from the start of one to that of the next."""
    json: str | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class HtmlOptions:
    """One page that needs nothing else: the verdict, a timeline that zooms, the breakdown, tables that sort."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Traces of torch.profiler (.json, .json.gz), or folders of them: one a rank. Each has a tab of its own."""
    out: str = "trace.html"
    """The page's file."""
    steps_by: str | None = None
    """Annotation that marks steps, from the start of one to that of the next."""
    comm: str | None = None
    """Regular expression of further kernels that communicate."""


@dataclass(frozen=True)
class OpenOptions:
    """A trace in Perfetto's UI, served from this machine without a network, or a run's folder in TensorBoard."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|RUN")]
    """A trace of torch.profiler, or a run's folder that holds one."""
    viewer: Annotated[str, tyro.conf.arg(name="with")] = "perfetto"
    """perfetto or tensorboard."""
    port: int | None = None
    """Where to serve; 0: any free one. Default: 9010 for perfetto, 6006 for tensorboard."""
    browser: bool = True
    """Open a browser window."""


def main(arguments: Sequence[str]) -> int:
    """Run one subcommand; returns its exit code."""
    if (named := part_named(arguments, "trace", "trace command", usage, SUBCOMMANDS)) is None:
        return 2
    name, rest = named
    return SUBCOMMANDS[name][0](rest)


def summary(arguments: Sequence[str]) -> int:
    """Print, write and draw the summaries of one or more traces."""
    options = parse(SummaryOptions, arguments, "trace summary")
    if not options.files:
        raise UserError("no trace given: fastvicreg trace summary FILE...")

    from fastvicreg.profiles.trace import text
    from fastvicreg.profiles.trace.files import trace_files

    if options.plot:
        from fastvicreg.profiles.charts import require_picture

        require_picture(options.plot)
    paths = trace_files(options.files)
    summaries = _read_all(paths, options.steps_by, options.comm)
    shown = summaries if len(summaries) <= ALL_SHOWN else [max(summaries, key=lambda s: s.step_ms["p50"])]
    if options.json:
        from fastvicreg.provenance import document, write_json

        steps = min(len(one.steps.names) for one in summaries)
        write_json(options.json, document("trace summary", [one.row() for one in summaries], steps))
    if options.plot:
        from fastvicreg.profiles.trace.bars import write_bars

        write_bars(shown, options.plot)
    console = text.console()
    if len(summaries) > 1:
        text.show_overview(summaries, console)
    for one in shown:
        text.show_summary(one, console)
    return 0


def diff(arguments: Sequence[str]) -> int:
    """Print and write what changed; 1 where B is slower than ``--fail-above`` allows."""
    options = parse(DiffOptions, arguments, "trace diff")
    limit = None if options.fail_above is None else share("--fail-above", options.fail_above)

    from fastvicreg.profiles.trace import text, text_diff
    from fastvicreg.profiles.trace.diff import compare
    from fastvicreg.profiles.trace.files import trace_files
    from fastvicreg.provenance import document, write_json

    pair = []
    for given in (options.a, options.b):
        paths = trace_files([given])
        if len(paths) > 1:
            raise UserError(f"{given} holds {len(paths)} traces: name one of them, such as {paths[0]}.")
        pair.append(_read(paths[0], options.steps_by, options.comm))
    difference = compare(*pair)
    if options.json:
        steps = min(len(one.steps.names) for one in pair)
        write_json(options.json, document("trace diff", difference.rows(), steps))
    text_diff.show_difference(difference, text.console())
    if limit is not None and difference.slower_by() > limit:
        print(f"B is slower by {difference.slower_by():.1%}, more than the {limit:.1%} allowed.")
        return 1
    return 0


def top(arguments: Sequence[str]) -> int:
    """Print and write the longest functions, operators or kernels."""
    options = parse(TopOptions, arguments, "trace top")

    from fastvicreg.profiles.trace import text, text_diff
    from fastvicreg.profiles.trace import top as tops
    from fastvicreg.profiles.trace.files import trace_files
    from fastvicreg.provenance import document, write_json

    if options.by not in tops.BY:
        raise UserError(unknown("kind of --by", options.by, tops.BY))
    if options.count < 1:
        raise UserError(f"--count {options.count}: give a number from 1.")
    paths = trace_files([options.file])
    if len(paths) > 1:
        raise UserError(f"{options.file} holds {len(paths)} traces: name one of them, such as {paths[0]}.")
    found = _read(paths[0], options.steps_by, None)
    rows = tops.top(found, options.by)
    if options.json:
        document_ = document("trace top", [row._asdict() for row in rows], len(found.steps.names))
        write_json(options.json, document_ | {"by": options.by})
    title = {"python": "Python functions", "operator": "operators", "kernel": "kernels"}[options.by]
    text_diff.show_top(rows, title, found, options.count, text.console())
    return 0


def html(arguments: Sequence[str]) -> int:
    """Write the page of one or more traces."""
    options = parse(HtmlOptions, arguments, "trace html")
    if not options.files:
        raise UserError("no trace given: fastvicreg trace html FILE... [--out PAGE.html]")
    if not options.out.lower().endswith((".html", ".htm")):
        raise UserError(f"--out {options.out}: give a file that ends in .html.")

    from fastvicreg.profiles.trace.files import trace_files
    from fastvicreg.profiles.trace.page import write_page

    summaries = _read_all(trace_files(options.files), options.steps_by, options.comm)
    path = write_page(summaries, options.out)
    for one in summaries:
        print(one.verdict.text)
    print(f"page: {visible(str(path))} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser.")
    return 0


def open_(arguments: Sequence[str]) -> int:
    """Serve a trace to a viewer until Ctrl-C, which is how it ends: exit code 0."""
    options = parse(OpenOptions, arguments, "trace open")
    if options.port is not None and not 0 <= options.port < 1 << 16:
        raise UserError(f"--port {options.port}: give a number from 0 to 65535.")

    from fastvicreg.profiles.trace.viewer import VIEWERS

    if options.viewer not in VIEWERS:
        raise UserError(unknown("viewer", options.viewer, tuple(VIEWERS)))
    VIEWERS[options.viewer](options.target, options.port, options.browser, partial(print, flush=True))
    return 0


def usage() -> str:
    """The text of ``fastvicreg trace --help``."""
    lines = [f"  {name:<8}  {line}" for name, (_, line) in SUBCOMMANDS.items()]
    head = "usage: fastvicreg trace COMMAND [OPTIONS]"
    return "\n".join([head, "", *lines, "", "fastvicreg trace COMMAND --help shows a command's options."])


SUBCOMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "summary": (summary, "what a step's time went into, what held it back, and what to change next"),
    "diff": (diff, "what changed from one trace to another; --fail-above 5% for a gate"),
    "top": (top, "the Python functions, operators or kernels that take longest (--by)"),
    "html": (html, "one page that needs nothing else: verdict, timeline, breakdown, tables"),
    "open": (open_, "a trace in Perfetto's UI without a network, or a run in TensorBoard"),
}


def _read(path: Path, steps_by: str | None, comm: str | None) -> Summary:
    from fastvicreg.profiles.trace.events import read_trace
    from fastvicreg.profiles.trace.summary import summarize

    return summarize(read_trace(path), steps_by=steps_by, comm=comm)


def _read_all(paths: Sequence[Path], steps_by: str | None, comm: str | None) -> list[Summary]:
    """Of several files those that can be read; the others are named on the error stream."""
    found, failed = [], []
    for path in paths:
        try:
            found.append(_read(path, steps_by, comm))
        except UserError as error:
            failed.append(error)
    if failed and (len(paths) == 1 or not found):
        raise failed[0]
    for error in failed:
        print(f"warning: left out: {error}", file=sys.stderr)
    return found
