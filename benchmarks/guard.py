"""Long runs of every method without and with the guard: the table "Collapse and the guard" of docs/results.md.

    python benchmarks/guard.py                        # all cells that benchmarks/results/guard.json does not hold yet
    python benchmarks/guard.py --only new-rule --minutes 10
    python benchmarks/guard.py --render               # writes the table into docs/results.md, runs nothing

A cell is a method on a task: one ``errata train`` with ``guard: warn``, and one with ``guard: best``. With the house policy the
second is run only where the first logged a sign that acts: without one a guard changes nothing (tests/training/test_guard.py) but
the end, which is then the first run's best evaluation. Every run's evaluations are in the JSON as soon as it ends, so an
interruption costs one run. Cells stand in the order of their importance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from errata.training.signs import signs_of_evaluations, signs_of_steps

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/guard.json"
PAGE = ROOT / "docs/results.md"
BEGIN, END = "<!-- benchmarks/guard.py: begin -->", "<!-- benchmarks/guard.py: end -->"
POLICIES = {"without": "warn", "with": "best"}

HOUSE = {
    "base": "recipes/new-rule.yaml",
    "max_steps": 400,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "eval_steps": 50,
    "eval_problems": 32,
    "eval_k": 4,
    "eval_teacher_problems": 16,
    "rollouts_saved": 0,
}
SMOLLM2 = {
    # A bad teacher: told only what is wrong, this model talks about its answer instead of mending it (docs/smollm2.md).
    "model": "smollm2-q4",
    "task": "instructions/include",
    "method": "distil",
    "method_args": {"sources": ["feedback"]},
    "teacher": "frozen",
    "learning_rate": 5.0e-5,
    "lr_scheduler_type": "constant",
    "temperature": 0.7,
    "max_steps": 16,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 20,
    "gradient_checkpointing": False,
    "eval_strategy": "steps",
    "eval_on_start": True,
    "eval_steps": 8,
    "eval_problems": 16,
    "eval_k": 2,
    "eval_teacher_problems": 16,
    "save_strategy": "no",
    "rollouts_saved": 0,
    "seed": 0,
}


def cells() -> dict[str, dict[str, Any]]:
    """Settings of each cell by its name: task/method/teacher."""

    def house(method: str, **more: Any) -> dict[str, Any]:
        return {**HOUSE, "method": method, **more}

    frozen = {f"new-rule/{m}/frozen": house(m) for m in ("opsd", "distil", "sdpo", "drift", "srpo", "grpo", "sft")}
    frozen["new-rule/grpo/none"] = frozen.pop("new-rule/grpo/frozen")
    frozen["new-rule/sft/none"] = frozen.pop("new-rule/sft/frozen")
    ema = {f"new-rule/{m}/ema": house(m, teacher="ema") for m in ("distil", "sdpo", "drift", "srpo")}
    names = list(frozen)
    first = {name: frozen[name] for name in names[:4]}
    return {**first, "smollm2/distil/feedback alone": SMOLLM2, **frozen, **ema}


def recipe_of(settings: dict[str, Any], policy: str) -> dict[str, Any]:
    """The cell's recipe, with the contexts that its base sets for the method under ``compare``."""
    changes = {k: v for k, v in settings.items() if k != "base"}
    base = yaml.safe_load((ROOT / settings["base"]).read_text()) if "base" in settings else {}
    base |= base.pop("compare", {}).get(settings["method"], {})
    return {**base, **changes, "guard": policy}


def run(name: str, arm: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training run. Returns its evaluations, what the guard said and did, and the seconds."""
    where = folder / f"{name.replace('/', '-').replace(' ', '-')}-{arm}"
    where.parent.mkdir(parents=True, exist_ok=True)
    recipe = where.with_suffix(".yaml")
    kept = {"overwrite": True, "preflight": 0, "output_dir": str(where)}
    recipe.write_text(yaml.safe_dump({**recipe_of(settings, POLICIES[arm]), **kept}))
    started = time.perf_counter()
    command = [sys.executable, "-m", "errata", "train", str(recipe)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {arm}:\n{done.stderr[-2000:]}")
    return {"seconds": round(time.perf_counter() - started), **read(where, settings["eval_k"])}


def read(folder: Path, k: int) -> dict[str, Any]:
    """The evaluations of a run directory, its signs, and what the guard did."""
    evaluations, steps, did = (_rows(folder / f"{stem}.jsonl") for stem in ("eval", "metrics", "guard"))
    kept = ("step", "length", "teacher_accuracy", "student_accuracy", "teacher_lead", "teacher_lead_se")
    return {
        "k": k,
        "problems": evaluations[0]["n_problems"],
        "evaluations": [
            {"accuracy": r[f"avg@{k}"], **{name: r[name] for name in kept if name in r}} for r in evaluations
        ],
        "signs": signs(steps, evaluations, k),
        "did": [row for row in did if row["did"] != "warn"],
    }


def signs(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """What a guard sees in a log, step by step."""
    found = []
    for step in range(steps[-1]["step"] + 1 if steps else 1):
        so_far = [row for row in steps if row["step"] <= step]
        here = signs_of_steps(so_far) if so_far and len(so_far) % 10 == 0 else []
        if any(row["step"] == step for row in evaluations):
            here += signs_of_evaluations([row for row in evaluations if row["step"] <= step], k)
        found += [{"step": step, "sign": s.name, "acts": s.acts, "said": s.said} for s in here]
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cells": {}}
    return found


def keep(name: str, arm: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Add one run to the JSON file, whole or not at all."""
    results = load()
    cell = results["cells"].setdefault(name, {"settings": settings})
    where = f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread"
    cell[arm] = {"date": date.today().isoformat(), "machine": where, "seed": settings.get("seed", 0), **found}
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(RESULTS)


def acting(arm: dict[str, Any]) -> dict[str, Any] | None:
    """The first sign that acts."""
    return next((row for row in arm["signs"] if row["acts"]), None)


def wanted(name: str, arm: str) -> bool:
    cell = load()["cells"].get(name, {})
    needed = arm == "without" or not name.startswith("new-rule") or acting(cell["without"]) is not None
    return arm not in cell and needed


def table(results: dict[str, Any]) -> str:
    """The table in Markdown, and which cells are missing."""
    lines = [
        "| task / method / teacher | steps | start | without: best | without: end | first sign | with the guard: end |",
        "|---|---|---|---|---|---|---|",
    ]
    missing: list[str] = []
    said: set[str] = set()
    ends: list[tuple[float, float]] = []
    for name, settings in cells().items():
        cell = results["cells"].get(name, {})
        if "without" not in cell:
            missing.append(f"{name}, without")
            continue
        accuracy = [e["accuracy"] for e in cell["without"]["evaluations"]]
        sign = acting(cell["without"])
        what = "none" if sign is None else f"{sign['sign']}, step {sign['step']}"
        if "with" in cell:
            end: float | None = cell["with"]["evaluations"][-1]["accuracy"]
        else:
            end = max(accuracy) if sign is None else None
        shown = "not run" if end is None else f"{end:.3f}" + ("" if "with" in cell else " †")
        cells_ = [f"{accuracy[0]:.3f}", f"{max(accuracy):.3f}", f"{accuracy[-1]:.3f}", what, shown]
        lines.append(f"| `{name}` | {settings['max_steps']} | " + " | ".join(cells_) + " |")
        if end is not None:
            ends.append((accuracy[0], end))
        else:
            missing.append(f"{name}, with")
        said |= {f"{a['date']}, {a['machine']}, seed {a['seed']}" for a in (cell["without"], cell.get("with")) if a}
    began = [cell["without"]["evaluations"] for cell in results["cells"].values() if "without" in cell]
    worse = sum(e[-1]["accuracy"] < e[0]["accuracy"] for e in began)
    notes = [
        f"Without the guard {worse} of {len(began)} runs end below where they began, with it "
        f"{sum(end < start for start, end in ends)} of {len(ends)} ({'; '.join(sorted(said))}).",
        "† Deduced, not run: without a sign that acts, the run with the guard is the same run and ends with its best evaluation.",
        f"Not run: {', '.join(f'`{name}`' for name in missing) or 'nothing'}.",
    ]
    return "\n".join([*lines, "", *notes])


def render() -> None:
    """Write the table into docs/results.md, between its two marks."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(load())}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="cells whose name begins so")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so many")
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.render:
        render()
        return
    RESULTS.parent.mkdir(exist_ok=True)
    started = time.perf_counter()
    for name, settings in cells().items():
        for arm in POLICIES:
            if not any(name.startswith(o) for o in args.only) or not wanted(name, arm):
                continue
            if time.perf_counter() - started > 60 * args.minutes:
                return
            found = run(name, arm, settings, args.out)
            keep(name, arm, found, settings)
            curve = ", ".join(f"{e['accuracy']:.2f}" for e in found["evaluations"])
            print(f"{name}, {arm}, {found['seconds']} s: {curve}", flush=True)


if __name__ == "__main__":
    main()
