"""``errata preflight``: before training, is there anything to learn from? The same, small, begins ``errata train``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from errata import methods
from errata.commands.allocator import keep_memory
from errata.methods import Method
from errata.recipe.build import build_trainer
from errata.recipe.read import read
from errata.training.findings import KINDS, Conclusion, Findings, Line, lines, verdicts
from errata.training.preflight import chosen_rows, measure
from errata.training.trainer import ErrataTrainer

COMPARED = ("grpo", "sft", "sdpo", "opsd", "srpo", "distil", "drift")
"""Methods that a conclusion is drawn about, with their defaults, beside the recipe's own."""

PROBLEMS, FEW = 32, 16
"""Training problems that are tried unless the user says how many; the second where sampling takes minutes."""

_LEGEND = (
    "raises, lowers: where a wrong attempt first parts from a right answer, how often the teacher gives the right token more "
    "probability, and the wrong one less"
)


def preflight(path: str | None, overrides: Sequence[str], *, problems: int | None, k: int, out: Path | None) -> int:
    """Print the table and the conclusions; write both to ``out`` as JSON.

    ``problems``: ``PROBLEMS`` unless given, or ``FEW`` of a language model on a CPU.
    Returns 1 where the recipe's method has nothing to learn from, else 0. Raises ``ValueError`` in one line for anything the user
    can mend.
    """
    from errata.commands.train import quiet  # which begins with a preflight itself

    for name, value in (("problems", problems), ("k", k)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}: must be at least 1, got {value}")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"--out: {out} must be a file in an existing directory")
    quiet()
    recipe = read(path, overrides)
    recipe.set_environment()
    if recipe.config.use_cpu or not torch.cuda.is_available():
        keep_memory()
    started = time.perf_counter()
    trainer = build_trainer(recipe)
    if trainer.expert is not None:
        raise ValueError(
            "expert: this one only answers queries about tokens, so its own accuracy is not known; evaluate it where it runs"
        )
    n = (FEW if _is_slow(trainer) else PROBLEMS) if problems is None else problems
    rows = chosen_rows(list(trainer.train_dataset), n, recipe.config.seed)

    def says(begins: str) -> None:
        if trainer.is_world_process_zero():
            print(f"{time.perf_counter() - started:5.0f} s  {begins}", flush=True)

    says(f"{recipe.config.model} is loaded; {len(rows)} problems, {k} attempts at each; nothing is learned")
    found = measure(trainer, rows, k, says=says)
    seconds = time.perf_counter() - started
    own = recipe.config.method
    concluded = verdicts(found, {own: trainer.method, **_others(own)}, own)
    if trainer.is_world_process_zero():
        console = Console()
        console.print(table(found, own, k))
        console.print(_LEGEND, highlight=False, soft_wrap=True)
        for conclusion in concluded:
            console.print(_said(conclusion), highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(found.problems)} problems, {k} attempts each, {seconds:.1f} s", highlight=False)
        if out is not None:
            out.write_text(json.dumps(as_plain(found, concluded, seconds), indent=1) + "\n", encoding="utf-8")
    trainer.accelerator.end_training()
    return int(concluded[0].answer == "no")


def before_training(console: Console, trainer: ErrataTrainer, name: str) -> None:
    """A preflight of ``trainer.args.preflight`` problems in the contexts that the recipe's own method chooses, in two lines.

    Not where the weights are sharded, nor of an expert that only answers queries. Raises ``ValueError`` with ``guard: stop``
    where the method has nothing to learn from; else that is said.
    """
    config = trainer.args
    if config.preflight == 0 or trainer.sharded or trainer.expert is not None:
        return
    k, started = min(config.num_generations, 4), time.perf_counter()
    rows = chosen_rows(list(trainer.train_dataset), config.preflight, config.seed)
    if trainer.is_world_process_zero():
        console.print(f"preflight on {len(rows)} training problems (preflight: 0 leaves it out)", highlight=False)
    found = measure(trainer, rows, k, ("own",) if trainer.method.uses_teacher else ())
    (conclusion,) = verdicts(found, {name: trainer.method}, name)
    if conclusion.answer == "no" and config.guard == "stop":
        raise ValueError(f"preflight: {_said(conclusion)}; guard: warn trains all the same, preflight: 0 does not look")
    if trainer.is_world_process_zero():
        plain = sum(p.plain for p in found.problems) / len(found.problems)
        console.print(
            f"preflight, {len(found.problems)} problems x {k} in {time.perf_counter() - started:.1f} s: "
            f"accuracy {plain:.3f}\n{_said(conclusion)}"
            + ("; errata preflight tries every context" if conclusion.answer == "no" else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def table(found: Findings, method: str, k: int) -> Table:
    """One row for each kind of context; the first is the policy's plain answers."""
    shown = Table(
        title=f"accuracy of {k} attempts at each problem", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for title in ("shown", "problems", "teacher", "student", "lead", "raises", "lowers"):
        shown.add_column(title, justify="left" if title == "shown" else "right", no_wrap=True)
    n = len(found.problems)
    shown.add_row("nothing", str(n), "", f"{sum(p.plain for p in found.problems) / n:.3f}", "", "", "")
    rows = {row.kind: row for row in lines(found)}
    for kind in (*KINDS, "own"):
        title = f"as {method} does" if kind == "own" else kind
        row = rows.get(kind)
        shown.add_row(Text(title), *(("0", *["–"] * 5) if row is None else _cells(row)))
    return shown


def _cells(row: Line) -> tuple[str, ...]:
    error = "" if row.error is None else f" ±{row.error:.2f}"
    tokens = [f"{x} of {row.pairs.n}" if row.pairs.n else "–" for x in (row.pairs.raises, row.pairs.lowers)]
    return str(row.n), f"{row.teacher:.3f}", f"{row.student:.3f}", f"{row.lead:+.2f}{error}", *tokens


def _said(conclusion: Conclusion) -> str:
    said = {
        "yes": "something to learn from",
        "no": "nothing to learn from",
        "unclear": "not clear from so few problems",
    }
    return f"{conclusion.method}: {said[conclusion.answer]}; {conclusion.why}"


def _is_slow(trainer: ErrataTrainer) -> bool:
    """Whether the policy is a language model, if a small one, on a CPU."""
    return bool(trainer.accelerator.device.type == "cpu" and sum(p.numel() for p in trainer.model.parameters()) > 50e6)


def _others(own: str) -> dict[str, Method]:
    return {name: methods.get(name) for name in COMPARED if name != own}


def as_plain(found: Findings, concluded: Sequence[Conclusion], seconds: float) -> dict[str, Any]:
    """Findings, table and conclusions as plain values."""
    rows = [{**asdict(row), "answer": row.answer} for row in lines(found)]
    problems = [{**asdict(p), "shown": dict(p.shown)} for p in found.problems]
    return {"seconds": seconds, "lines": rows, "conclusions": [asdict(c) for c in concluded], "problems": problems}
