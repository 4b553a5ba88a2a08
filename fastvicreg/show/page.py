"""The frame of every report: one self-contained HTML page, no script, nothing fetched."""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2430; background: #f6f7f9; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p { max-width: 46rem; } .lead { color: #4b5768; margin-top: 0; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; margin: 1rem 0;
  padding: .2rem 1.3rem 1.3rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .4rem .7rem; text-align: right; }
th { border-bottom: 2px solid #1c2430; } td { border-bottom: 1px solid #e1e5ea; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, table.read th:last-child, table.read td:last-child { text-align: left; }
tr.own td { font-weight: 700; background: #eef5ff; }
pre { background: #f1f3f6; padding: .8rem; overflow: auto; font-size: .8rem; } code { font-size: .9em; }
"""


def page(title: str, body: str) -> str:
    """A whole page around ``body``, whose texts are escaped already; ``title`` is not."""
    head = f"<title>{html.escape(title)}</title><meta name='viewport' content='width=device-width'>"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'>{head}<style>{STYLE}</style><main>{body}</main></html>"
    )


def provenance() -> str:
    """The machine, the versions and the commit that a page was made with, as a paragraph."""
    from fastvicreg.provenance import commit, hardware, versions

    machine, packages = hardware(), versions()
    shown = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"<p>{html.escape(machine['cpu'])}, {machine['cores']} cores. {html.escape(shown)}. Commit {commit()}.</p>"
