"""How methods bear rollouts that older weights sampled: training with the house policy at a staleness of 0 to 8 steps.

    python benchmarks/staleness.py [--task rulebook/sharpen] [--staleness 0 2 4 8] [--seeds 0 1 2] [--steps 24] [--out FILE]
    python benchmarks/staleness.py --table FILE            # the table of runs that are there already

A run of staleness k samples step s with the weights that the policy had before step s - k (the first ones until then), as an
asynchronous trainer does whose rollouts are k steps late. The loss is computed with today's weights. The samplers' log-probs
stand for the old ones, so each method limits the ratio of both policies as it always does: GRPO by the clipped surrogate,
the others by min(ratio, 2). The teacher is frozen and, as in a trainer, scores the rollouts when they are learned from.
With ``--no-ratio`` the ratio is left out.

Everything else is as in recipes/new-rule.yaml, with 64 rollouts a step. Each run prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

SHOWN = {"sources": ["reference"], "with_feedback": True}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "reverse KL (sdpo)": ("sdpo", {**SHOWN, "divergence": "reverse_kl"}),
    "forward CE, local": ("distil", {**SHOWN, "credit": "none"}),
    "forward CE, with credit (distil)": ("distil", {**SHOWN, "future_weight": 0.3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="rulebook/sharpen")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--staleness", nargs="*", type=int, default=[0, 2, 4, 8])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--no-ratio", action="store_true")
    parser.add_argument("--out", type=Path, help="append the runs' lines to this file")
    parser.add_argument("--table", type=Path, help="print the table of this file and stop")
    args = parser.parse_args()
    if args.table is not None:
        print_table([json.loads(line) for line in args.table.read_text().splitlines()])
        return
    rows = []
    for seed in args.seeds:  # seeds outermost: an interrupted study has every cell of its first seeds
        for staleness in args.staleness:
            for name in args.methods:
                rows.append(run(name, args.task, staleness, seed, args.steps, args.learning_rate, args.no_ratio))
                line = json.dumps(rows[-1])
                print(line, flush=True)
                if args.out is not None:
                    with args.out.open("a") as file:
                        file.write(line + "\n")
    print_table(rows)


def run(name: str, task: str, staleness: int, seed: int, steps: int, rate: float, no_ratio: bool) -> dict[str, Any]:
    """Train once. The accuracies are avg@8 on 48 held-out problems, before, half way and after."""
    import torch
    from transformers import TrainerCallback

    from errata.recipe.build import build_trainer
    from errata.recipe.read import recipe_of
    from errata.training.batch import TokenBatch
    from errata.training.trainer import ErrataTrainer

    method, method_args = METHODS[name]
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": "house",
            "task": task,
            "task_args": {"feedback": "trace"},
            "method": method,
            "method_args": method_args,
            "context_template": "house",
            "teacher": None if method == "grpo" else "frozen",
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 3,
            "max_steps": steps,
            "per_device_train_batch_size": 64,
            "num_generations": 8,
            "max_completion_length": 40,
            "gradient_checkpointing": False,
            "eval_strategy": "steps",
            "eval_steps": max(steps // 2, 1),
            "eval_on_start": True,
            "eval_problems": 48,
            "eval_k": 8,
            "eval_teacher_problems": 0,
            "rollouts_saved": 0,
            "save_strategy": "no",
            "use_cpu": True,
            "seed": seed,
            "output_dir": folder,
        }
        trainer = build_trainer(recipe_of({k: v for k, v in settings.items() if v is not None}))
        model = trainer.model
        past: deque[list[torch.Tensor]] = deque(maxlen=staleness + 1)

        def weights() -> list[torch.Tensor]:
            return [p.detach().clone() for p in model.parameters()]

        def load(values: list[torch.Tensor]) -> None:
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), values, strict=True):
                    parameter.copy_(value)

        class Remember(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *a: Any, **k: Any) -> None:
                past.append(weights())

        generate, on_rollouts = model.generate, trainer.on_rollouts

        def with_stale_weights(function: Any, *a: Any, **k: Any) -> Any:
            if not staleness or not past or not model.training_now:
                return function(*a, **k)
            now = weights()
            load(past[0])
            try:
                return function(*a, **k)
            finally:
                load(now)

        @torch.no_grad()
        def logp(tokens: TokenBatch) -> torch.Tensor:
            """(B,T) of the completions under the weights as they stand, at the temperature of 1."""
            inputs = tokens.model_inputs()
            width = tokens.completion_ids.shape[1]
            logits = model(**inputs).logits[:, -width - 1 : -1].float()
            found: torch.Tensor = logits.log_softmax(-1).gather(-1, tokens.completion_ids[..., None])[..., 0]
            return found

        def scored(rows: Any, tokens: TokenBatch) -> Any:
            if staleness:
                old = with_stale_weights(logp, tokens)
                ratio = (logp(tokens) - old).exp()[tokens.mask]
                ratios.append(float((ratio - 1).abs().mean()))
                if not no_ratio:
                    tokens = replace(tokens, old_logp=old)
            return on_rollouts(rows, tokens)

        evaluate = trainer.evaluate

        def fresh_evaluate(*a: Any, **k: Any) -> Any:
            model.training_now = False
            try:
                return evaluate(*a, **k)
            finally:
                model.training_now = True

        model.training_now = True
        model.generate = lambda *a, **k: with_stale_weights(generate, *a, **k)
        trainer.on_rollouts, trainer.evaluate = scored, fresh_evaluate
        assert isinstance(trainer, ErrataTrainer)
        trainer.add_callback(Remember())
        started = time.process_time()
        trainer.train()
        logs = trainer.state.log_history
    found = [log["eval_avg@8"] for log in logs if "eval_avg@8" in log]
    return {
        "method": name,
        "task": task,
        "staleness": staleness,
        "seed": seed,
        "steps": steps,
        "no_ratio": no_ratio,
        "accuracy": found,
        "ratio_error": statistics.mean(ratios) if ratios else 0.0,
        "seconds": round(time.process_time() - started, 1),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, with the smallest and the largest."""
    names = list(dict.fromkeys(r["method"] for r in rows))
    ages = sorted({r["staleness"] for r in rows})
    print("\navg@8 after training, mean over seeds (smallest to largest); below it the mean of |ratio - 1|")
    print("| method | " + " | ".join(f"staleness {k}" for k in ages) + " |")
    print("|---|" + "---|" * len(ages))
    for name in names:
        cells, sizes = [], []
        for age in ages:
            here = [r for r in rows if r["method"] == name and r["staleness"] == age]
            ends = [r["accuracy"][-1] for r in here]
            cells.append(f"{statistics.mean(ends):.2f} ({min(ends):.2f} to {max(ends):.2f})" if ends else "")
            sizes.append(f"{statistics.mean(r['ratio_error'] for r in here):.3f}" if here else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
        print("| | " + " | ".join(sizes) + " |")


if __name__ == "__main__":
    main()
