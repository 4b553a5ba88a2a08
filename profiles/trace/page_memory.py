"""The page's chart of memory over the whole trace: one drawing a device, without a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from fastvicreg.profiles.trace.intervals import Times
from fastvicreg.profiles.trace.memory import Use
from fastvicreg.profiles.trace.summary import Summary

POINTS = 800
"""Changes drawn, at most."""
STEPS = 400
"""Steps marked, at most."""
WIDTH, HEIGHT = 1000, 110


def memory_charts(summary: Summary) -> str:
    """A card with a chart for each device whose allocations were recorded; nothing where none were."""
    charts = [_chart(where, use, summary) for where, use in summary.memory.items()]
    if not charts:
        return ""
    return f'<div class="block memory"><h3>Memory over the trace</h3>{"".join(charts)}</div>'


def _chart(where: str, use: Use, summary: Summary) -> str:
    windows = summary.steps.windows
    start = min(float(use.at_N[0]), float(windows.start_M[0]))
    end = max(float(use.at_N[-1]), float(windows.end_M[-1]), start + 1e-3)
    top = max(use.peak, 0 if use.reserved_N is None else int(use.reserved_N.max()), 1)
    shown = use.thinned(POINTS)

    def line(bytes_N: Sequence[int]) -> str:
        return _steps((shown.at_N - start) / (end - start) * WIDTH, HEIGHT * (1 - np.asarray(bytes_N) / top))

    allocated = line(shown.allocated_N.tolist())
    reserved = ""
    legend = [f"peak {size(use.peak)} allocated"]
    if shown.reserved_N is not None and use.reserved_N is not None:
        reserved = f'<path class="reserved" d="{line(shown.reserved_N.tolist())}"/>'
        legend.append(f"{size(int(use.reserved_N.max()))} reserved (dashed)")
    begins = ((windows.start_M[:STEPS] - start) / (end - start) * WIDTH).tolist()
    marks = "".join(f"M{at:.1f} 0V{HEIGHT}" for at in begins) if summary.steps.source != "trace" else ""
    area = f"{allocated}H{WIDTH}V{HEIGHT}H{(float(shown.at_N[0]) - start) / (end - start) * WIDTH:.1f}Z"
    label = escape(f"Memory of {where} over the trace: {', '.join(legend)}", quote=True)
    return (
        f"<figure><figcaption><b>{escape(where)}</b> {escape(', '.join(legend))}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="marks" d="{marks}"/><path class="area" d="{area}"/>'
        f'<path class="allocated" d="{allocated}H{WIDTH}"/>{reserved}</svg></figure>'
    )


def _steps(x_N: Times, y_N: Times) -> str:
    """A path that goes across, then up or down: memory changes at once."""
    first, *rest = zip(x_N.tolist(), y_N.tolist(), strict=True)
    return f"M{first[0]:.1f} {first[1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest)


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
