"""Helpers of the training tests: a small world whose rewards vary, and a trainer on it."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from tests.tiny import build_model, build_tokenizer

from errata import methods
from errata.recipe.config import ErrataConfig
from errata.records import Verdict
from errata.training.trainer import ErrataTrainer

TOKENIZER = build_tokenizer()


def rows(n: int = 8) -> Dataset:
    return Dataset.from_list(
        [
            {
                "problem_id": f"p{i}",
                "prompt": [{"role": "user", "content": f"Write letters, {i}"}],
                "reference": "abcabc"[: 3 + i % 3],
                "answer": "a",
                "task": "letters",
            }
            for i in range(n)
        ]
    )


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Share of letters: differs between completions of a random policy."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(ch.isalpha() for ch in t) / max(len(t), 1) for t in texts]


def verifier(completions: list[Any], **kwargs: Any) -> list[Verdict]:
    """The same as a bit, with feedback; about half of a random policy's attempts pass."""
    return [Verdict(float(r > 0.5), f"{r:.2f} of it is letters", "trace") for r in reward(completions)]


def settings(folder: Any, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 10,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 3,
    }
    return {**base, **changes}


def trainer(
    folder: Any,
    method: Any = "distil",
    *,
    model: Any = None,
    verifiers: Any = None,
    keep: Any = None,
    peft_config: Any = None,
    method_args: Any = None,
    eval_rows: int = 0,
    access: Any = None,
    expert: Any = None,
    train_rows: int = 8,
    **changes: Any,
) -> ErrataTrainer:
    decided = methods.get(method, **(method_args or {})) if isinstance(method, str) else method
    changes = {"context_template": "{{ prompt }} {{ solution }}{{ feedback }}", **changes}
    config = ErrataConfig(**settings(folder, eval_k=4, eval_batch_size=8, **changes))
    return ErrataTrainer(
        build_model(len(TOKENIZER)) if model is None else model,
        verifiers or [verifier],
        config,
        method=decided,
        train_dataset=rows(train_rows),
        eval_dataset=rows(eval_rows) if eval_rows else None,
        processing_class=TOKENIZER,
        peft_config=peft_config,
        access=access,
        expert=expert,
        run=(lambda stem, row: None) if keep is None else (lambda stem, row: keep.append((stem, row))),
    )


def history(t: Any, *names: str) -> list[tuple[float, ...]]:
    return [tuple(log.get(n, 0.0) for n in names) for log in t.state.log_history if "grad_norm" in log]


def weights(model: Any) -> dict[str, Any]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}
