"""Trains with a preflight and each guard on two processes: ``torchrun ... -m tests.training.guard_worker FOLDER``.

Leaves ``FOLDER/RANK.json``: by policy, what that process saw and decided. Answers are right that hold five different letters. At
this learning rate the policy soon writes the same letter again and again, so that its accuracy falls and stays low.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from tests.training.worlds import TOKENIZER, build_model, rows, weights

from errata.commands import preflight, train
from errata.records import Verdict

POLICIES = ("none", "warn", "freeze", "reward", "best", "stop")
SEEN = (
    "reward",
    "completions/mean_length",
    "teacher/divergence",
    "entropy",
    "rollouts/quotes_reference",
    "rollouts/mentions_feedback",
    "rollouts/unjudged",
    "context/none",
    "groups/solve_all",
    "eval_avg@4",
    "eval_teacher_lead",
)
"""What the guard's signs are read from."""


def five_letters(completions: list[Any], **columns: Any) -> list[Verdict]:
    """Named by the recipe as a verifier."""
    found = [len({x for x in c[-1]["content"] if x.isalpha()}) for c in completions]
    return [Verdict(float(n >= 5), f"{n} different letters", "trace") for n in found]


def write_recipe(folder: Path) -> None:
    """The policy, the rows and the recipe, from which each run differs by its guard."""
    model = build_model(len(TOKENIZER))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder / "policy")
    TOKENIZER.save_pretrained(folder / "policy")
    (folder / "data").mkdir()
    data = [json.dumps(row) + "\n" for row in rows(18)]
    for split, lines in (("train", data[:9]), ("test", data[9:])):
        (folder / "data" / f"{split}.jsonl").write_text("".join(lines))
    settings = {
        "model": str(folder / "policy"),
        "dataset_name": str(folder / "data"),
        "verifier": ["tests.training.guard_worker:five_letters"],
        "verifier_isolation": "none",
        "method": "distil",
        "teacher": "ema",
        "teacher_rate": 0.5,
        "context_template": "{{ prompt }} {{ solution }}{{ feedback }}",
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 10,
        "learning_rate": 1.0,
        "max_steps": 8,
        "preflight": 5,  # an odd number: one process answers a problem more
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": 2,
        "eval_k": 4,
        "eval_teacher_problems": 8,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "critic_max_tokens": 4,
        "seed": 0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))


def run(policy: str, folder: Path) -> dict[str, Any]:
    """One ``errata train``: its exit status and what this process saw and decided."""
    kept, found = noted(train, "build_trainer"), noted(preflight, "measure")
    status = train.train(str(folder / "recipe.yaml"), ["--guard", policy, "--output_dir", str(folder / policy)])
    (trainer,) = kept
    return {
        "status": status,
        "preflight": [repr(f) for f in found],
        "acted": trainer.guard.acted,
        "steps": trainer.state.global_step,
        "teacher": [trainer.teacher.frozen_early, trainer.teacher.updates],
        "reward_only": trainer.generation.reward_only,
        "logs": [{name: log[name] for name in SEEN if name in log} for log in trainer.state.log_history],
        "weights": [float(p.double().sum()) for p in weights(trainer.accelerator.unwrap_model(trainer.model)).values()],
    }


def measured(folder: Path) -> dict[str, Any]:
    """``errata preflight`` in every context: its exit status and what this process found."""
    found = noted(preflight, "measure")
    status = preflight.preflight(str(folder / "recipe.yaml"), [], problems=5, k=4, out=None)
    return {"status": status, "preflight": [repr(f) for f in found]}


def noted(module: Any, name: str) -> list[Any]:
    """What the module's function returns from now on."""
    kept: list[Any] = []
    function = getattr(module, name)
    function = getattr(function, "noted", function)

    def called(*args: Any, **kwargs: Any) -> Any:
        kept.append(function(*args, **kwargs))
        return kept[-1]

    called.noted = function  # type: ignore[attr-defined]
    setattr(module, name, called)
    return kept


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)  # where a collective waits that not all processes call
    torch.set_num_threads(1)
    Accelerator.end_training = lambda self: None  # type: ignore[method-assign]  # one group for all runs of a process
    where = Path(sys.argv[1])
    result = {policy: run(policy, where) for policy in POLICIES} | {"preflight": measured(where)}
    (where / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
