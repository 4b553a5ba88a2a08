"""The table of verdicts: what is true of each known trace, what we say of it, and what other tools answer.

``python tests/support/trace_verdicts.py FOLDER --peers PYTHON`` writes ``profiles/results/trace-verdicts.json``: FOLDER
holds the public traces, PYTHON runs an environment with HolisticTraceAnalysis 0.5.0, torch-tb-profiler 0.4.3 and AMD's
TraceLens (pandas < 3). Without ``--peers`` their columns say "not run".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from known_traces import MADE, PUBLIC, Known
from traces import device_trace

from fastvicreg.profiles.trace.diff import compare
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import Summary, summarize
from fastvicreg.provenance import document, write_json

FILE = Path(__file__).parents[2] / "profiles" / "results" / "trace-verdicts.json"
LIMIT_SECONDS = 300

# Each prints its answer as the last line: its sentences, and the shares of the time that it takes as the whole.
# What a tool names as the cause is told by CLAIMS from what it says; figures alone are no verdict.
PEERS = {
    "torch-tb-profiler": """
import json, re, sys, tempfile
from torch_tb_profiler.profiler.data import RunProfileData
from torch_tb_profiler.profiler.event_parser import ProfileRole
found = RunProfileData.parse("worker", 0, sys.argv[1], tempfile.mkdtemp())
found.process()
found.analyze()
costs = found.avg_costs.costs
shares = {role.name: costs[role] / costs[ProfileRole.Total] for role in ProfileRole if role != ProfileRole.Total}
says = [re.sub("<[^>]+>", "", text) for text in found.recommendations]
""",
    "hta": """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from hta.trace_analysis import TraceAnalysis
found = TraceAnalysis({0: sys.argv[1]}, os.path.dirname(sys.argv[1]))
whole = found.get_temporal_breakdown(visualize=False).iloc[0]
shares = {name: whole[f"{name}_time_pctg"] / 100 for name in ("idle", "compute", "non_compute")}
idle = found.get_idle_time_breakdown(visualize=False)[0].groupby("idle_category")["idle_time"].sum()
shares |= {f"of idle, {name}": value / idle.sum() for name, value in idle.items()}
says = []
""",
    "tracelens": """
import json, sys
from TraceLens import TreePerfAnalyzer
found = TreePerfAnalyzer.from_file(sys.argv[1]).get_df_gpu_timeline()
names = ("computation_time", "exposed_comm_time", "exposed_memcpy_time", "idle_time")
shares = {row["type"]: row["percent"] / 100 for _, row in found.iterrows() if row["type"] in names}
says = []
""",
}
_LAST = '\nprint("\\n" + json.dumps({"says": says, "shares": {name: float(share) for name, share in shares.items()}}))'
CLAIMS = {"data": "high time cost on input data loading", "comm": "high time cost on communication"}


def ours(known: Known, path: Path) -> tuple[Summary, dict[str, Any]]:
    """The summary and the row of a trace."""
    found = summarize(read_trace(path), steps_by=known.steps_by)
    faults = known.faults(found)
    name = f"made: {known.name}" if known.made else known.name
    row = {"trace": name, "true": known.true, "bound": found.verdict.bound, "right": not faults, "faults": faults}
    return found, row | {"ours": found.verdict.text}


def peer(python: str, name: str, known: Known, path: Path) -> dict[str, Any]:
    """A tool's answer: its verdict is "right", "wrong", "no verdict" or "failed"."""
    command = [python, "-c", PEERS[name] + _LAST, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"verdict": "failed", "answer": f"more than {LIMIT_SECONDS} s"}
    if done.returncode != 0:
        return {"verdict": "failed", "answer": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    figures = ", ".join(f"{part} {share:.1%}" for part, share in answer["shares"].items() if share >= 5e-4)
    return {"verdict": judged(answer["says"], known.bound), "answer": " ".join([*answer["says"], f"({figures})"])}


def judged(says: Sequence[str], bound: str) -> str:
    """Whether the causes that a tool names hold the true one."""
    claimed = [cause for cause, text in CLAIMS.items() if any(text in one for one in says)]
    return "no verdict" if not claimed else "right" if bound in claimed else "wrong"


def differences(folder: Path) -> list[dict[str, Any]]:
    """Comparisons whose answer is known; the tools of others are not asked."""

    def row(pair: tuple[Path, Path], title: str, true: str, says: str) -> dict[str, Any]:
        found = compare(*(summarize(read_trace(path)) for path in pair))
        return {"trace": title, "true": true, "right": says in found.text, "ours": found.text}

    public = {known.name.partition("__")[0].removesuffix(".json.gz"): folder / known.name for known in PUBLIC}
    before, slower = folder / "made before.json", folder / "made slower.json"
    device_trace(6).write(before)
    device_trace(6, gemm_us=318).write(slower)
    workers = public["resnet50_num_workers_0"], public["resnet50_num_workers_4"]
    return [
        row((before, before), "made: diff of a trace with itself", "no difference", "No difference"),
        row((before, slower), "made: diff, one kernel 6 % slower", "that kernel: 18 us", "ampere_sgemm_#x#_tn"),
        row(workers, "diff ResNet-50, 0 and 4 workers", "the difference is data", "most of it is data"),
        row((public["tl_h100_qwen"], public["tl_mi300_qwen"]), "diff Qwen, H100 and MI300X",
            "the MI300X is faster: it works for 43.06 ms, not 45.65", "B is 5% faster: 49.38 and 46.89 ms"),
    ]  # fmt: skip


def table(folder: Path, python: str | None) -> list[dict[str, Any]]:
    """All rows; the public traces are links in a folder of their own, where tools may write beside them."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for number, known in enumerate((*MADE, *PUBLIC)):
            path = place / (f"made{number}.json" if known.made else known.name)
            if known.made:
                known.made().write(path)
            else:
                path.symlink_to((folder / known.name).resolve())
            _, row = ours(known, path)
            for reader in PEERS:
                row[reader] = peer(python, reader, known, path) if python else {"verdict": "not run", "answer": ""}
            print(row["trace"], row["right"], *(row[reader]["verdict"] for reader in PEERS), sep=" | ", flush=True)
            rows.append(row)
        return rows + differences(place)


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of each tool how many verdicts were right, wrong, none, or failed."""
    found: dict[str, dict[str, int]] = {"ours": {"right": sum(r["right"] for r in rows), "of": len(rows)}}
    for reader in PEERS:
        answers = [row[reader]["verdict"] for row in rows if reader in row]
        found[reader] = {kind: answers.count(kind) for kind in dict.fromkeys(answers)}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    lines = table(given.folder, given.peers)
    write_json(str(given.out), document("trace summary", lines, 1) | {"counts": counted(lines)})
    print(json.dumps(counted(lines), indent=1))
