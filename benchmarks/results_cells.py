"""The cells of docs/results.md: one run each, by name. ``benchmarks/results.py`` runs them, ``results_render.py`` shows them.

A name is ``TABLE/LABEL/seed-N``. ``TABLE/LABEL/rate-R`` and ``TABLE/LABEL/ema-rate-R`` are tuning trials, judged on training
problems: with the frozen teacher and with one that follows the student. The runs of a label take the learning rate and the
teacher of the best trial, so the trials come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results"
TAUGHT = {
    **{f"rate-{rate:g}": {"learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)},
    **{f"ema-rate-{rate:g}": {"learning_rate": rate, "teacher": "ema"} for rate in (4e-3, 8e-3)},
}
"""The tuning trials of a method with a teacher."""
UNTAUGHT = {f"rate-{rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}
"""Those of one without: as many."""
TUNED = ("learning_rate", "teacher")
TUNING_SEED = 1000
COOL = 0.6
"""The temperature at which DistIL's and SDPO's authors evaluate science; training samples at 1."""

HOUSE: dict[str, Any] = {
    "model": "house",
    "task": "rulebook/new-rule",
    "task_args": {"feedback": "trace"},
    "teacher": "frozen",
    "context_template": "house",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "max_steps": 30,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 40,
    "temperature": 1.0,
    "gradient_checkpointing": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "rollouts_saved": 0,
}
"""30 steps of 16 problems x 8 rollouts. Every teacher is the frozen policy, shown the solution."""

SOLUTION = {"sources": ["reference"]}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "grpo-group": {"method": "grpo", "scale_rewards": "group"},
    "sdpo": {"method": "sdpo", "method_args": SOLUTION},
    "opsd": {"method": "opsd"},
    "opsd-paper": {"method": "opsd-paper"},
    "srpo": {"method": "srpo", "method_args": SOLUTION},
    "srpo-forward": {"method": "srpo", "method_args": {**SOLUTION, "divergence": "forward_kl"}},
    "distil": {"method": "distil", "method_args": SOLUTION},
    "distil-exact": {"method": "distil-exact", "method_args": SOLUTION},
    "distil-science": {"method": "distil-science", "method_args": SOLUTION},
    "drift": {
        "method": "drift",
        "method_args": {"sources": ["sibling", "buffer", "reference"], "warmup_steps": 10},
    },
    "sft": {"method": "sft"},
}
NO_TEACHER = ("grpo", "grpo-group", "sft", "trl-grpo")
PEERS = {"trl-grpo": {"trainer": "GRPOTrainer"}, "trl-sdpo": {"trainer": "SDPOTrainer"}}

SHOWN: dict[str, dict[str, Any]] = {
    "solution and trace": {"sources": ["reference"], "with_feedback": True},
    "trace": {"sources": ["feedback"]},
    "sibling, else trace": {"sources": ["sibling", "feedback"]},
    "sibling, else nothing": {"sources": ["sibling"]},
}
"""What the teacher is shown, in the table of feedback kinds, beside the solution alone of the table of methods."""

CREDIT: dict[str, dict[str, Any]] = {
    "none": {"credit": "none"},
    "default": {},
    "not shrunk": {"shrink": False},
    "neither shrunk nor limited": {"shrink": False, "credit_limit": None},
    "exact": {"baseline": "leave_one_out", "discount": 1.0, "credit_limit": None},
    "mean of CE, as released": {
        "credit": "mean",
        "cost": "ce",
        "baseline": "none",
        "discount": 1.0,
        "credit_limit": None,
    },
}
"""DistIL's second term, in the table of future credit."""

DISTIL: dict[str, dict[str, Any]] = {
    "default": {},
    "cost ce": {"cost": "ce"},
    "no baseline": {"baseline": "none"},
    "leave-one-out baseline": {"baseline": "leave_one_out"},
    "discount 0.9": {"discount": 0.9},
    "discount 1": {"discount": 1.0},
    "student's top 10": {"support": "student_topk", "top_k": 10},
    "teacher's top 10": {"support": "teacher_topk", "top_k": 10},
}
"""DistIL with one setting changed, in the table of its settings; the default's runs are those of the table of future credit."""

TWO_SIGNALS: dict[str, Any] = {
    **HOUSE,
    "task": "rulebook/two-signals",
    "max_steps": 40,
    "per_device_train_batch_size": 64,
}
"""40 steps of 8 problems x 8 rollouts, half of them of each kind."""
SIBLING = {"sources": ["sibling", "reference"]}
TWO_METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "sdpo": {"method": "sdpo", "method_args": SIBLING},
    "distil": {"method": "distil", "method_args": SIBLING},
    "srpo": {"method": "srpo", "method_args": SIBLING},
    "drift": METHODS["drift"],
}
"""Methods on ``rulebook/two-signals``. All teachers may be shown successful siblings, and solutions where there are any."""
TWO_RATES = {f"rate-{rate:g}": {"learning_rate": rate} for rate in (1e-3, 2e-3)}
"""Two trials a method there, not six: a smaller budget, the same for all."""
DRIFT: dict[str, dict[str, Any]] = {
    "two denominators": {"denominators": "routed"},
    "no routing": {"routing": "none"},
    "no rhythm": {"rhythm": False},
    "no buffer": {"buffer": "none"},
    "no warm-up": {"warmup_steps": 0},
}
"""DRIFT with one of its parts switched off, on the same task at the rate of its best trial."""

SMOLLM2: dict[str, dict[str, Any]] = {
    "distil": {},
    "sdpo": {"method": "sdpo", "method_args": SOLUTION},
    "grpo": {"method": "grpo", "method_args": {}},
    "sft": {"method": "sft", "method_args": {}},
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str
    label: str
    seed: int
    recipe: Mapping[str, Any]
    """All settings, the learning rate too unless trials choose it."""
    peer: str | None = None
    """TRL's trainer, where it is not errata's."""
    trials: tuple[str, ...] = ()
    """Names of the tuning trials that choose the learning rate."""
    at: Mapping[int, int] = field(default_factory=dict)
    """Step -> samples of each problem drawn there."""
    cool: int = 0
    """Samples of each problem that are drawn at the end at temperature ``COOL``, too."""
    split: str = "test"
    problems: int = 64

    @property
    def file(self) -> Path:
        return RECORDS / f"{self.name}.json"

    @property
    def table(self) -> str:
        return self.name.partition("/")[0]

    def record(self) -> dict[str, Any] | None:
        """What the run gave; ``None`` while it is missing."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None

    def settings(self) -> dict[str, Any]:
        """The recipe with the best trial's learning rate and teacher; of equal ones the first."""
        if not self.trials:
            return {**self.recipe, "seed": self.seed}
        found = {name: CELLS[name].record() for name in self.trials}
        missing = [name for name, record in found.items() if record is None]
        if missing:
            raise ValueError(f"{self.name}: its learning rate is chosen by {', '.join(missing)}; run them first")
        best = max(found.values(), key=lambda record: record["avg@1"])["settings"]
        return {**self.recipe, **{name: best[name] for name in TUNED if name in best}, "seed": self.seed}


def _tuned(
    table: str,
    label: str,
    recipe: Mapping[str, Any],
    seeds: int,
    at: Mapping[int, int],
    peer: str | None = None,
    *,
    tried: Mapping[str, Mapping[str, Any]] | None = None,
    cool: int = 32,
) -> Iterator[Cell]:
    """The tuning trials, and the runs."""
    trials = []
    for name, settings in (tried or (UNTAUGHT if label in NO_TEACHER else TAUGHT)).items():
        trials.append(f"{table}/{label}/{name}")
        yield Cell(trials[-1], label, TUNING_SEED, {**recipe, **settings}, peer, at={max(at): 8}, split="train")
    for seed in range(seeds):
        yield Cell(f"{table}/{label}/seed-{seed}", label, seed, recipe, peer, tuple(trials), at, cool=cool)


def _of_recipe(name: str) -> dict[str, Any]:
    """A recipe's settings without its evaluations, which a cell measures itself, and without checkpoints."""
    found = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    template = str(found.get("context_template"))
    if (ROOT / "recipes" / template).is_file():  # a recipe names it from its own folder, a cell from the root
        found["context_template"] = f"recipes/{template}"
    kept = {k: v for k, v in found.items() if not k.startswith(("eval_", "save_")) and k not in ("seed", "run_name")}
    return kept | {"eval_strategy": "no", "save_strategy": "no", "rollouts_saved": 0}


def _all() -> Iterator[Cell]:
    at = {10: 8, 20: 16, 30: 128}
    for label, own in METHODS.items():
        yield from _tuned("new-rule", label, {**HOUSE, **own}, 5, at)
    for label, own in PEERS.items():
        recipe = {k: v for k, v in HOUSE.items() if k not in ("teacher", "context_template")}
        yield from _tuned("new-rule", label, recipe, 5, at, own["trainer"])
    for method in ("distil", "sdpo"):
        for kind, args in SHOWN.items():
            label = f"{method}, {kind}"
            recipe = {**HOUSE, "method": method, "method_args": args, "learning_rate": 4e-3}
            for seed in range(3):
                name = f"shown/{label.replace(', ', '-').replace(' ', '-')}/seed-{seed}"
                yield Cell(name, label, seed, recipe, at={20: 16, 30: 16})
    for kind, args in CREDIT.items():
        recipe = {**HOUSE, "method": "distil", "method_args": {**SOLUTION, **args}, "learning_rate": 4e-3}
        for seed in range(3):
            name = f"credit/{kind.replace(', ', '-').replace(' ', '-')}/seed-{seed}"
            yield Cell(name, f"credit, {kind}", seed, recipe | {"teacher": "ema"}, at={20: 16, 30: 16}, cool=32)
    for kind, args in DISTIL.items():
        recipe = {**HOUSE, "method": "distil", "method_args": {**SOLUTION, **args}, "learning_rate": 4e-3}
        for seed in range(3 if args else 0):
            name = f"settings/{kind.replace(' ', '-').replace(chr(39), '')}/seed-{seed}"
            yield Cell(name, f"distil, {kind}", seed, recipe | {"teacher": "ema"}, at={20: 16, 30: 16}, cool=32)
    at = {1: 16, 20: 8, 40: 32}
    for label, own in TWO_METHODS.items():
        yield from _tuned("two-signals", label, {**TWO_SIGNALS, **own}, 3, at, tried=TWO_RATES, cool=0)
    trials = tuple(f"two-signals/drift/{name}" for name in TWO_RATES)
    for kind, args in DRIFT.items():
        own = METHODS["drift"]["method_args"] | args
        recipe = {**TWO_SIGNALS, "method": "drift", "method_args": own}
        for seed in range(3):
            name = f"drift/{kind.replace(' ', '-')}/seed-{seed}"
            yield Cell(name, f"drift, {kind}", seed, recipe, trials=trials, at=at)
    for seed in range(3):
        yield Cell(f"demo/distil/seed-{seed}", "demo", seed, _of_recipe("demo"), at={40: 8, 80: 8})
    smollm2 = _of_recipe("smollm2") | {"model": "smollm2-q4"}
    for label, own in SMOLLM2.items():
        for seed in range(3):
            recipe = smollm2 | own
            yield Cell(f"smollm2/{label}/seed-{seed}", label, seed, recipe, at={15: 2, 30: 4}, problems=24)


CELLS: dict[str, Cell] = {cell.name: cell for cell in _all()}
