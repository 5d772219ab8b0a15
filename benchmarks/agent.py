"""Methods with and without feedback at every turn, in the embedded world of several turns: a table of docs/results.md.

    python benchmarks/agent.py --list                        # all cells, and which have a record
    python benchmarks/agent.py --cell distil-per-turn/seed-0 # run one again and compare it with its record
    python benchmarks/agent.py --run --seeds 1 --minutes 10  # run those that are missing, until the time is over
    python benchmarks/agent.py --render                      # write the table into docs/results.md, runs nothing

A cell is a run of 40 steps on the task ``drawers``. Three kinds of contexts are compared: ``result``, what the verifier says at
the end, that is the number of wrong keys; ``trace``, what the tool said to all calls, shown at every turn; ``per-turn``, at each
turn what became known after it. A record is written when its run ends. On a CPU with one thread its numbers are the same in
every run, but for the seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from results import _processor, text
from results_cells import RECORDS, ROOT

from errata.commands.allocator import keep_memory
from errata.commands.train import quiet

PAGE = ROOT / "docs/results.md"
BEGIN, END = "<!-- benchmarks/agent.py: begin -->", "<!-- benchmarks/agent.py: end -->"
RECIPE = ROOT / "recipes/drawers.yaml"
SEEDS = 3
K, PROBLEMS = 8, 32
KINDS = {
    "result": ("feedback", {"feedback": "result"}),
    "trace": ("feedback", {"feedback": "trace"}),
    "per-turn": ("hindsight", {"feedback": "result"}),
}
"""The source of contexts, and the verifier's settings."""
BESIDE: dict[str, dict[str, Any]] = {
    "sdpo": {},
    "distil": {},
    "drift": {"warmup_steps": 15, "denominators": "routed"},  # its default when the records were made
}
"""Settings of each method beside its sources."""
NUMBERS = ("avg", "solved", "rewards")
"""What of a record is the same in every run."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    kind: str
    """Of contexts; empty for GRPO, which reads no feedback."""
    seed: int

    @property
    def name(self) -> str:
        return f"{'-'.join(filter(None, (self.method, self.kind)))}/seed-{self.seed}"

    @property
    def file(self) -> Path:
        return RECORDS / "agent" / f"{self.name}.json"

    def record(self) -> dict[str, Any] | None:
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None

    def settings(self) -> dict[str, Any]:
        """What differs from the recipe."""
        own: dict[str, Any] = {
            "method": self.method,
            "seed": self.seed,
            "eval_on_start": False,
            "eval_steps": 20,
            "eval_problems": PROBLEMS,
            "eval_k": K,
            "eval_teacher_problems": 0,
            "preflight": 0,
            "guard": "none",
            "rollouts_saved": 0,
        }
        if self.kind:
            source, args = KINDS[self.kind]
            before = ["sibling", "buffer"] if self.method == "drift" else []
            own |= {"task_args": args, "method_args": {**BESIDE[self.method], "sources": [*before, source]}}
        return own


CELLS = {
    cell.name: cell
    for seed in range(SEEDS)
    for cell in (
        Cell("grpo", "", seed),
        *(Cell(method, kind, seed) for kind in reversed(KINDS) for method in BESIDE),
    )
}


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure; the record."""
    from errata.recipe.build import build_trainer
    from errata.recipe.read import recipe_of
    from errata.recipe.text import load_mapping

    settings = {**load_mapping(RECIPE), "method_args": {}, **cell.settings()}
    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(recipe_of({**settings, "output_dir": folder}))
        trainer.train()
    log = trainer.state.log_history
    solved: dict[str, int] = {}
    for rollout in trainer.evaluator.last_rollouts:
        solved[rollout.problem_id] = solved.get(rollout.problem_id, 0) + rollout.solved()
    return {
        "cell": f"agent/{cell.name}",
        "model": settings["model"],
        "task": settings["task"],
        "method": cell.method,
        "context": cell.kind,
        "seed": cell.seed,
        "settings": settings,
        "problems": PROBLEMS,
        "samples": K,
        "avg": {str(row["step"]): row[f"eval_avg@{K}"] for row in log if f"eval_avg@{K}" in row},
        "solved": list(solved.values()),
        "rewards": [row["reward"] for row in log if "reward" in row],
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.perf_counter() - started, 1),
        "versions": {name: version(name) for name in ("errata", "torch", "transformers", "trl", "numpy")},
        "machine": f"{_processor()}, {torch.get_num_threads()} thread",
        "date": date.today().isoformat(),
    }


def table() -> str:
    """Accuracy after the last step, mean and standard deviation over the seeds there are."""
    kinds = list(KINDS)
    lines = [f"| method | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for method in ("grpo", *BESIDE):
        shown = [_entry(method, kind) for kind in (kinds if method in BESIDE else ("", None, None))]
        lines.append(f"| `{method}` | {' | '.join(shown)} |")
    records = [r for cell in CELLS.values() if (r := cell.record()) is not None]
    seconds = [r["cpu_s"] for r in records]
    dates = sorted({r["date"] for r in records})
    lines += [
        "",
        f"{len(records)} runs of 40 steps, {min(seconds):.0f} to {max(seconds):.0f} CPU seconds each; "
        f"{records[0]['machine']}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
    ]
    return "\n".join(lines)


def _entry(method: str, kind: str | None) -> str:
    if kind is None:
        return "–"
    records = [r for s in range(SEEDS) if (r := Cell(method, kind, s).record()) is not None]
    last = [100 * list(r["avg"].values())[-1] for r in records]
    if not last:
        return "–"
    spread = f" ± {statistics.stdev(last):.1f}" if len(last) > 1 else ""
    return f"{math.fsum(last) / len(last):.1f}{spread} ({len(last)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--cell", help="run this cell, and compare it with its record where there is one")
    parser.add_argument("--run", nargs="*", help="run the missing cells whose names begin so")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="with --run: only seeds below this")
    parser.add_argument("--minutes", type=float, default=1e9, help="with --run: start no cell after this long")
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    logging.getLogger("errata").setLevel(logging.ERROR)
    quiet()
    keep_memory()
    if args.render:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
        print(table())
        return 0
    if args.cell is not None:
        if args.cell not in CELLS:
            raise SystemExit(f"--cell: no cell {args.cell!r}; --list names them")
        old, new = CELLS[args.cell].record(), run(CELLS[args.cell])
        print(text(new))
        if old is None:
            _keep(CELLS[args.cell], new)
            return 0
        different = [name for name in NUMBERS if old[name] != new[name]]
        print(f"differs in {', '.join(different)}" if different else "the same as its record", file=sys.stderr)
        return bool(different)
    if args.run is None:
        for cell in CELLS.values():
            record = cell.record()
            print(cell.name, "missing" if record is None else list(record["avg"].values())[-1])
        return 0
    started = time.monotonic()
    for cell in CELLS.values():
        wanted = cell.seed < args.seeds and any(cell.name.startswith(begin) for begin in args.run or [""])
        if not wanted or cell.file.is_file():
            continue
        if time.monotonic() - started > 60 * args.minutes:
            break
        record = run(cell)
        _keep(cell, record)
        print(f"{cell.name}: {record['avg']}, {record['cpu_s']} CPU s, {record['wall_s']} s", flush=True)
    return 0


def _keep(cell: Cell, record: dict[str, Any]) -> None:
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    part = cell.file.with_suffix(".part")
    part.write_text(text(record) + "\n", encoding="utf-8")
    part.replace(cell.file)


if __name__ == "__main__":
    raise SystemExit(main())
