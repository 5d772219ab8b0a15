"""Lengths of SmolLM2's answers under estimators of DistIL's credit, where an answer may end at any token: docs/length.md.

    python benchmarks/free_smollm2.py             # runs what benchmarks/results/free_smollm2.json does not hold yet
    python benchmarks/free_smollm2.py --render    # writes the table into docs/length.md, runs nothing

The task and the frozen teacher, shown the reference, are those of recipes/smollm2.yaml. But an answer may have 64 tokens instead
of 24, and the credit has its full weight. A run is one ``errata train``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/free_smollm2.json"
PAGE = ROOT / "docs/length.md"
BEGIN, END = "<!-- benchmarks/free_smollm2.py: begin -->", "<!-- benchmarks/free_smollm2.py: end -->"
ENDS = 5
"""Steps at each end of a run that are averaged."""
ARMS: dict[str, dict[str, Any]] = {
    "`distil`": {"method": "distil"},
    "`distil-exact`": {"method": "distil-exact"},
    "`credit: none`": {"method": "distil", "method_args": {"sources": ["reference"], "credit": "none"}},
}
CHANGES = {
    "model": "smollm2-q4",
    "method_args": {"sources": ["reference"]},
    "lr_scheduler_type": "constant_with_warmup",
    "max_steps": 24,
    "num_generations": 4,
    "max_completion_length": 64,
    "bf16": True,
    "use_cpu": True,
    "eval_strategy": "no",
    "eval_on_start": False,
    "rollouts_saved": 8,
    "preflight": 0,
    "overwrite": True,
}
"""Settings that differ from recipes/smollm2.yaml."""


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training run: what it logged at each step, and whether it warned of its lengths."""
    base = yaml.safe_load((ROOT / "recipes/smollm2.yaml").read_text())
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**base, **CHANGES, **settings, "output_dir": str(folder / "run")}))
    started = time.perf_counter()
    command = [sys.executable, "-m", "errata", "train", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{settings}:\n{done.stderr[-3000:]}")
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {"length": "completions/mean_length", "divergence": "teacher/divergence", "reward": "reward"}
    rows = [row for row in steps if "reward" in row]
    return {
        "seconds": round(time.perf_counter() - started),
        "steps": {short: [round(row[name], 4) for row in rows if name in row] for short, name in names.items()},
        "warned": [line for line in done.stderr.splitlines() if "shorter, not better" in line],
    }


def table(results: dict[str, Any]) -> str:
    """The table in Markdown, and how it was made."""
    lines = [
        f"| | tokens, first {ENDS} steps → last {ENDS} | divergence a token | reward |",
        "|---|---|---|---|",
    ]
    for name in ARMS:
        if name not in results:
            lines.append(f"| {name} | not run | | |")
            continue
        kept = results[name]["run"]
        ends = {k: (fmean(v[:ENDS]), fmean(v[-ENDS:])) for k, v in kept["steps"].items()}
        shown = [
            "{:.0f} → {:.0f}".format(*ends["length"]),
            "{:.3f} → {:.3f}".format(*ends["divergence"]),
            "{:.2f} → {:.2f}".format(*ends["reward"]),
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    said = sorted({f"{r['date']}, {r['machine']}" for r in results.values()})
    setting = (
        f"{CHANGES['max_steps']} steps of 2 problems × 4, at most {CHANGES['max_completion_length']} tokens, seed 0"
    )
    return "\n".join([*lines, "", f"{setting} ({'; '.join(said) or 'no run yet'})."])


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.render:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(load())}\n{END}{rest.split(END)[1]}")
        return
    for name, settings in ARMS.items():
        if name in load():
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = run(settings, Path(folder))
        machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread"
        kept = {"settings": CHANGES | settings, "date": date.today().isoformat(), "machine": machine, "run": found}
        RESULTS.write_text(json.dumps(load() | {name: kept}, indent=1, ensure_ascii=False) + "\n")
        print(name, found["seconds"], "s", flush=True)
    print(table(load()))


if __name__ == "__main__":
    main()
