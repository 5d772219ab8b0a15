"""Run the cells of docs/results.md, and keep a record of each under ``benchmarks/results/``.

    python benchmarks/results.py --list                     # all cells, and which have a record
    python benchmarks/results.py --cell new-rule/sdpo/seed-0 # run one again and compare it with its record
    python benchmarks/results.py --run new-rule --minutes 10 # run those that are missing, until the time is over

A record holds model, task, method, seed, settings, avg@1, pass@k, how many of each problem's samples were right, the accuracy
at earlier steps, tokens, seconds, versions, machine and date. It is written when its run ends, so an interrupted start
loses one run. On a CPU with one thread the numbers are the same in every run, but for the seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from results_cells import CELLS, COOL, ROOT, Cell
from transformers import TrainerCallback

from errata import tasks
from errata.commands.allocator import keep_memory
from errata.commands.train import quiet
from errata.evaluation.metrics import pass_at_k
from errata.evaluation.sampling import sample

NUMBERS = ("avg@1", "pass@k", "solved", "cool", "curve", "tokens")
"""What of a record is the same in every run."""


class Measure(TrainerCallback):  # type: ignore[misc]
    """Samples held-out problems at some steps, and times the steps themselves."""

    def __init__(self, cell: Cell, tokenizer: Any) -> None:
        settings = cell.recipe
        self.cell, self.tokenizer = cell, tokenizer
        self.rows = tasks.load(settings["task"], split=cell.split).select(range(cell.problems))
        count = len(self.rows)
        self.kinds = np.array(self.rows["kind"]) if "kind" in self.rows.column_names else None
        self.full_marks = self.rows["full_marks"] if self.kinds is not None else [1.0] * count
        self.verifier = tasks.verifier(settings["task"], **settings.get("task_args", {}))
        self.sampling = {key: settings[key] for key in ("temperature", "max_completion_length")}
        self.cpu_s = self.wall_s = 0.0
        self.curve: list[dict[str, Any]] = []
        self.solved: list[int] = []
        self.cool: dict[str, Any] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.process_time(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.cpu_s += time.process_time() - self._began[0]
        self.wall_s += time.perf_counter() - self._began[1]
        k = self.cell.at.get(state.global_step)
        if k is None:
            return
        self.solved, length = self._solved(model, k)
        row = {"step": state.global_step, "k": k, "cpu_s": round(self.cpu_s, 1), "wall_s": round(self.wall_s, 1)}
        row |= {"pass@k": _pass_at(k, np.array(self.solved)), "length": length}
        if self.kinds is not None:
            shares = np.array(self.solved) / k
            row["kinds"] = {str(kind): float(shares[self.kinds == kind].mean()) for kind in sorted(set(self.kinds))}
        self.curve.append(row)
        if self.cell.cool and state.global_step == max(self.cell.at):
            self.cool = {"temperature": COOL, "solved": self._solved(model, self.cell.cool, temperature=COOL)[0]}

    def _solved(self, model: Any, k: int, **changed: Any) -> tuple[list[int], float]:
        """How many of each problem's samples are right, and the samples' mean length."""
        found = sample(
            model,
            self.tokenizer,
            self.rows,
            self.verifier,
            k=k,
            batch_size=256,
            seed=self.cell.seed,
            progress=False,
            **self.sampling | changed,
        )
        full_marks = np.repeat(self.full_marks, k)
        scores = np.array([row["score"] or 0.0 for row in found])
        right = (scores >= full_marks - 1e-9).reshape(len(self.rows), k).sum(axis=1)
        return right.tolist(), float(np.mean([row["length"] for row in found]))


def _pass_at(n: int, right: Any) -> dict[str, float]:
    """The unbiased estimates of pass@k for k = 1, 2, 4, ... up to n."""
    return {str(k): float(np.mean(pass_at_k(n, right, k))) for k in (2**i for i in range(n.bit_length()))}


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure; the record."""
    settings = cell.settings()
    with tempfile.TemporaryDirectory() as folder:
        if cell.peer is None:
            measure, tokens = _with_errata(cell, {**settings, "output_dir": folder})
        else:
            import peers

            measure, tokens = peers.train(cell, {**settings, "output_dir": folder}, Measure)
    last = measure.curve[-1]
    return {
        "cell": cell.name,
        "model": settings["model"],
        "task": settings["task"],
        "method": settings.get("method") or f"TRL {version('trl')} {cell.peer}",
        "seed": cell.seed,
        "settings": settings,
        "problems": cell.problems,
        "split": cell.split,
        "avg@1": last["pass@k"]["1"],
        "pass@k": last["pass@k"],
        "samples": last["k"],
        "solved": measure.solved,
        **({"cool": measure.cool} if measure.cool is not None else {}),
        "curve": measure.curve,
        "tokens": tokens,
        "cpu_s": round(measure.cpu_s, 1),
        "wall_s": round(measure.wall_s, 1),
        "versions": {name: version(name) for name in ("errata", "torch", "transformers", "trl", "numpy")},
        "machine": f"{_processor()}, {torch.get_num_threads()} thread",
        "date": date.today().isoformat(),
    }


def _with_errata(cell: Cell, settings: dict[str, Any]) -> tuple[Measure, int]:
    """The callback that measured, and how many tokens were sampled in training."""
    from errata.recipe.build import build_trainer
    from errata.recipe.read import recipe_of

    trainer = build_trainer(recipe_of(settings))
    measure = Measure(cell, trainer.tokenizer)
    trainer.add_callback(measure)
    trainer.train()
    return measure, sampled_tokens(trainer, settings)


def sampled_tokens(trainer: Any, settings: dict[str, Any]) -> int:
    """Completion tokens of all steps, from the logged mean lengths."""
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return round(sum(lengths) * settings["per_device_train_batch_size"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The names of the numbers in which two records of a cell differ; seconds are left out."""

    def plain(value: Any) -> Any:
        return (
            [{k: v for k, v in row.items() if not k.endswith("_s")} for row in value]
            if isinstance(value, list) and value and isinstance(value[0], dict)
            else value
        )

    return [n for n in NUMBERS if plain(old.get(n)) != plain(new.get(n))]


def text(record: dict[str, Any]) -> str:
    """JSON with a line for each key."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def keep(cell: Cell, record: dict[str, Any]) -> None:
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    part = cell.file.with_suffix(".part")
    part.write_text(text(record) + "\n", encoding="utf-8")
    part.replace(cell.file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--cell", help="run this cell, and compare it with its record where there is one")
    parser.add_argument("--run", nargs="*", help="run the missing cells whose names begin so, in this order")
    parser.add_argument("--seeds", type=int, default=5, help="with --run: only seeds below this, and the trials")
    parser.add_argument("--minutes", type=float, default=1e9, help="with --run: start no cell after this long")
    args = parser.parse_args()
    logging.getLogger("errata").setLevel(logging.ERROR)
    quiet()
    keep_memory()
    os.chdir(ROOT)  # recipes name their templates from here
    if args.cell is not None:
        if args.cell not in CELLS:
            raise SystemExit(f"--cell: no cell {args.cell!r}; --list names them")
        cell = CELLS[args.cell]
        old, new = cell.record(), run(cell)
        print(text(new))
        if old is None:
            keep(cell, new)
            return 0
        different = differences(old, new)
        print(
            f"differs from its record in {', '.join(different)}" if different else "the same as its record",
            file=sys.stderr,
        )
        return bool(different)
    started = time.monotonic()
    wanted = [
        c
        for begin in args.run or [""]
        for c in CELLS.values()
        if c.name.startswith(begin) and (c.trials == () or c.seed < args.seeds)
    ]
    if args.list or args.run is None:
        for cell in CELLS.values():
            record = cell.record()
            print(cell.name, "missing" if record is None else f"{record['avg@1']:.3f}")
        return 0
    for cell in wanted:
        if cell.file.is_file():
            continue
        if time.monotonic() - started > 60 * args.minutes:
            break
        began = time.process_time()
        record = run(cell)
        keep(cell, record)
        curve = " ".join(f"{row['pass@k']['1']:.2f}" for row in record["curve"])
        print(
            f"{cell.name}: {curve}; steps {record['cpu_s']} CPU s, all {time.process_time() - began:.0f} CPU s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
