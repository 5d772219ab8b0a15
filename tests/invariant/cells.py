"""The pinned runs: which there are, and the recipe of each.

A cell is a run of three optimizer steps on the house policy. Its metrics are kept in ``references/NAME.json`` and must
not change while errata's internals do. Everything here uses only what a user sees: recipe keys and ``metrics.jsonl``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.invariant.verifier import solve

HERE = Path(__file__).parent
REFERENCES = HERE / "references"

RENAMED: dict[str, str] = {}
"""Metrics that were renamed on purpose: name in the references -> name in today's ``metrics.jsonl``."""

_TIMING = re.compile(r"(^|[_/])(time|runtime|seconds?|per_second|tokens/s)($|[_/])")

PRESETS = (
    "grpo",
    "sdpo",
    "opsd",
    "srpo",
    "distil",
    "drift",
    "sft",
    "grpo-mini-8",
    "grpo-mini-32",
    "sdpo-science",
    "sdpo-code",
    "distil-exact",
    "distil-science",
    "distil-code",
    "distil-math",
    "opsd-nonthinking",
    "opsd-paper",
    "srpo-forward",
    "drift-paper",
    "drift-released",
)
"""All of ``errata.methods.names()``; a test says so."""

# Five problems, of which a step takes four: most of them return in the next step, so that buffers, pass rates and
# histories are used. The house policy errs in a third of all steps.
RAGGED = ("7a+3b*4", "2a*6b-1c+5", "9a-4b*3c+8d*2", "4a+9b-2c*7d+6e-5", "5a*7b+6c-3d*8e+1f-4")
# Two processes whose longest completions differ in length stop with an error (a known fault at the time of writing), so
# the cells with two processes have problems of one length. The policy always writes such a chain to its end.
EVEN = ("7a+3b*4c-6d*9", "2a*6b-1c+5d*3", "9a-4b*3c+8d*2", "4a+9b-2c*7d+6", "5a*7b+6c-3d*8")

_BASE: dict[str, Any] = {
    "model": "house",
    "use_cpu": True,  # without it torchrun starts two runs of one process each where there is no GPU
    "context_template": "house",
    "learning_rate": 1e-3,
    "max_steps": 3,
    "preflight": 0,
    "num_generations": 4,
    "max_completion_length": 40,
    "temperature": 1.0,
    "gradient_checkpointing": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "seed": 0,
}
_ROLLOUTS = 16  # of a step, over all processes: 4 problems x 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pinned run."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recipe keys that differ from the base."""
    processes: int = 1
    micro_batches: int = 1
    """Of an optimizer step (gradient accumulation)."""
    verifier: str = "lenient"
    """Name of a function in ``tests/invariant/verifier.py``; unused where ``settings`` name a task."""
    default: bool = False
    """Checked by the default test suite; else marked slow."""

    @property
    def reference(self) -> Path:
        return REFERENCES / f"{self.name}.json"

    def recipe(self, rows: Path) -> dict[str, Any]:
        """The recipe, for a data set that lies in the directory ``rows`` (see ``rows_of``)."""
        data: dict[str, Any] = {"dataset_name": str(rows), "verifier": [f"{HERE / 'verifier.py'}:{self.verifier}"]}
        batch = {
            "per_device_train_batch_size": _ROLLOUTS // (self.processes * self.micro_batches),
            "gradient_accumulation_steps": self.micro_batches,
        }
        return {**_BASE, **({} if "task" in self.settings else data), **batch, **self.settings}

    def rows(self) -> list[dict[str, Any]]:
        """The problems, as lines of ``train.jsonl``."""
        return [
            {
                "problem_id": f"problem-{index}",
                "prompt": [{"role": "user", "content": f"{expression}=?"}],
                "reference": solve(expression),
                "expression": expression,
            }
            for index, expression in enumerate(RAGGED if self.processes == 1 else EVEN)
        ]


def is_timing(name: str) -> bool:
    """Whether a metric measures time, and so is not pinned."""
    return _TIMING.search(name) is not None


_METHOD_ARGS: dict[str, dict[str, Any]] = {
    name: {"warmup_steps": 1}  # step 1 in the first stage, steps 2 and 3 in the second
    for name in ("drift", "drift-paper", "drift-released")
}
_DEFAULT_GRID = {
    "sft-p1-m4",
    "opsd-paper-p1-m1",
    "grpo-p1-m1",
    "sdpo-p1-m4",
    "srpo-p1-m4",
    "distil-p1-m1",
    "distil-p1-m4",
    "distil-p2-m4",
    "drift-p1-m1",
    "drift-p2-m4",
    "opsd-p1-m1",
    "sdpo-science-p1-m4",
    "distil-science-p2-m1",
}


def _grid() -> list[Cell]:
    cells = []
    for preset in PRESETS:
        for processes in (1, 2):
            for micro_batches in (1, 4):
                settings: dict[str, Any] = {"method": preset}
                if preset in _METHOD_ARGS:
                    settings["method_args"] = _METHOD_ARGS[preset]
                name = f"{preset}-p{processes}-m{micro_batches}"
                cells.append(
                    Cell(
                        name=name,
                        settings=settings,
                        processes=processes,
                        micro_batches=micro_batches,
                        default=name in _DEFAULT_GRID,
                    )
                )
    return cells


def _one(
    name: str,
    method: str,
    *,
    args: Mapping[str, Any] | None = None,
    micro_batches: int = 4,
    verifier: str = "lenient",
    default: bool = False,
    **settings: Any,
) -> Cell:
    """A further cell, of one process."""
    method_args = {**_METHOD_ARGS.get(method, {}), **(args or {})}
    chosen = {"method": method, **({"method_args": method_args} if method_args else {}), **settings}
    return Cell(name=name, settings=chosen, micro_batches=micro_batches, verifier=verifier, default=default)


_SAMPLES: dict[str, Any] = {"gives": "samples", "samples": 2, "share": 0.25, "where": "entropy"}
_LORA: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj", "down_proj"],
}

CELLS: tuple[Cell, ...] = (
    *_grid(),
    *(_one(f"{preset}-cool", preset, temperature=0.7) for preset in PRESETS),
    _one("exact", "distil-exact", verifier="exact"),
    _one("exact-drift", "drift", verifier="exact"),
    _one("lora", "distil-exact", default=True, **_LORA),
    _one("lora-opsd", "opsd", **_LORA),
    _one("replay", "distil-exact", replay_capacity=12, replay_share=0.5, default=True),
    _one("replay-one-piece", "distil-exact", replay_capacity=12, replay_share=0.5, micro_batches=1),
    _one("expert-samples", "distil-exact", args={"sources": ["expert"], "cost": "ce"}, expert="house", expert_args=_SAMPLES,
         default=True),
    _one("expert-samples-disagreement", "distil-exact", args={"sources": ["reference"], "cost": "ce"}, expert="house",
         expert_args={**_SAMPLES, "where": "disagreement"}),
    _one("expert-topk", "distil-exact", args={"sources": ["reference"]}, expert="house",
         expert_args={"gives": "topk", "top_k": 5}),
    _one("expert-full", "sdpo", args={"sources": ["sibling", "expert"]}, expert="house"),
    _one("two-steps-a-generation", "distil-exact", micro_batches=2, steps_per_generation=4, per_device_train_batch_size=4),
    _one("two-steps-a-generation-drift", "drift", micro_batches=2, steps_per_generation=4, per_device_train_batch_size=4),
    _one("two-iterations", "distil-exact", micro_batches=2, num_iterations=2),
    _one("two-iterations-grpo", "grpo", micro_batches=2, num_iterations=2, learning_rate=3e-3),
    _one("two-iterations-srpo", "srpo", micro_batches=2, num_iterations=2),
    _one("trust-region", "distil-exact", teacher="trust_region"),
    _one("teacher-sync", "sdpo", teacher="sync", teacher_sync_steps=2),
    _one("teacher-live", "sdpo", teacher="live"),
    _one("history", "sdpo", args={"sources": ["feedback"], "history": 2}),
    _one("with-feedback", "distil-exact", args={"sources": ["sibling", "reference"], "with_feedback": True}),
    _one("no-leaks", "distil-exact", args={"sources": ["sibling", "feedback"], "allow_leaks": False}),
    _one("rhythm", "drift", args={"margin": 0.0, "window": 2, "anchor_scale": 20.0}, default=True),
    _one("two-demonstrations", "drift", args={"demonstrations": 2}),
    _one("short-teacher-prompt", "distil-exact", max_teacher_prompt_length=38),
    _one("truncated", "distil-exact", max_completion_length=17, mask_truncated_completions=True),
    _one("scaled-rewards", "grpo", scale_rewards="group"),
    _one("reference-kl", "grpo", beta=0.1),
    _one("partial-credit", "srpo", verifier="partial"),
    _one("partial-credit-drift", "drift", verifier="partial"),
    _one("unjudged", "srpo", verifier="sometimes_none"),
    _one("unjudged-drift", "drift", verifier="sometimes_none"),
    _one("critic", "sdpo", critic="policy", critic_max_tokens=8),
    _one("task-sharpen", "distil-exact", task="rulebook/sharpen", task_args={"feedback": "trace"},
         args={"sources": ["sibling", "feedback", "reference"]}),
    _one("task-correction", "sdpo", task="rulebook/new-rule", task_args={"feedback": "correction"}),
)  # fmt: skip

BY_NAME = {cell.name: cell for cell in CELLS}
