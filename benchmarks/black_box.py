"""What a black box costs in noise: the gradient of `distil-exact`'s loss from samples at some states, beside the exact one.

    python benchmarks/black_box.py [--draws 200] [--problems 4]

One fixed batch of the house policy's rollouts on ``rulebook/new-rule``; the expert is the policy shown the solution. The exact
gradient uses its whole distribution at every state; each draw queries anew, for ``samples`` tokens at a ``share`` of the states.
Printed are, for the whole gradient (the local term and the future credit together): the variance of one draw over the exact
gradient's squared norm; how far the mean of all draws is from the exact gradient; and p, how often a mean as far off comes about
by chance, were there no bias (each draw's error given a random sign, 10,000 times).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from typing import Any

import torch

CASES = [
    *(("every", n, share, True) for n in (1, 4, 16) for share in (0.1, 0.25, 1.0)),
    *((where, 4, 0.25, True) for where in ("entropy", "disagreement")),
    *((where, 4, 0.25, False) for where in ("entropy", "disagreement")),
]


class Scene:
    """A trainer at its first step with one batch of rollouts, whose expert can be queried again and again."""

    def __init__(self, problems: int = 4, group: int = 4, seed: int = 0, temperature: float = 1.0) -> None:
        from errata.recipe.build import build_trainer
        from errata.recipe.read import read

        settings: dict[str, Any] = {
            "per_device_train_batch_size": problems * group,
            "num_generations": group,
            "method_args.sources": "[reference]",
            "method_args.cost": "ce",
            "context_template": "house",
            "max_completion_length": 40,
            "gradient_checkpointing": "false",
            "eval_strategy": "no",
            "output_dir": tempfile.mkdtemp(),
            "seed": seed,
            "temperature": temperature,
            "use_cpu": "true",
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        recipe = read(None, ["--model", "house", "--task", "rulebook/new-rule", "--method", "distil-exact", *words])
        self.trainer = build_trainer(recipe)
        self.trainer.model.train()
        rows = [self.trainer.train_dataset[i // group] for i in range(problems * group)]
        torch.manual_seed(seed)
        self.trainer._generate_and_score_completions(rows)
        self._batch = self.trainer.generation

    def gradient(self, access: Any, draw: int = 0) -> torch.Tensor:
        """The loss's gradient by all parameters, flat, in float64, with the expert queried anew."""
        from errata.training.teacher_pass import Place

        trainer, batch = self.trainer, self._batch
        trainer.teacher_pass = replace(trainer.teacher_pass, access=access)
        place = Place(trainer.args.seed, draw, 0)
        outputs, _ = trainer.teacher_pass(
            trainer.model, batch.tokens, batch.contexts, batch.prompts, place, trainer.no_checkpointing
        )
        trainer.generation = replace(batch, teacher=outputs, signals=None)
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        trainer.batch_loss(trainer.model, torch.arange(len(batch)), None).backward()
        return torch.cat([p.grad.flatten().double() for p in trainer.model.parameters() if p.grad is not None])

    def states(self) -> int:
        return int(self._batch.tokens.completion_mask.sum())


def scatter(scene: Scene, access: Any, draws: int) -> dict[str, float]:
    """Noise of one draw and the mean's distance from the exact gradient; see the module."""
    from errata.experts.access import Access

    exact = scene.gradient(Access())
    errors = torch.stack([(scene.gradient(access, draw) - exact).float() for draw in range(draws)])
    products = (errors @ errors.t()).double()
    far = float(products.sum())  # the squared norm of the errors' sum
    signs = torch.randint(2, (10_000, draws), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    by_chance = ((signs @ products) * signs).sum(1)
    squared = float(exact.square().sum())
    return {
        "noise": (float(products.diagonal().sum()) - far / draws) / (draws - 1) / squared,
        "distance": math.sqrt(far) / draws / math.sqrt(squared),
        "p": float((by_chance >= far).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from errata.experts.access import Access

    torch.set_num_threads(1)
    scene = Scene(options.problems, seed=options.seed)
    print(
        f"{scene.states()} states of {4 * options.problems} rollouts, {options.draws} draws each, seed {options.seed}"
    )
    print("| states queried by | samples | share | counted 1/p | variance / |g|² | distance / |g| | p |")
    print("|---|---|---|---|---|---|---|")
    for where, samples, share, unbiased in CASES:
        access = Access(gives="samples", samples=samples, where=where, share=share, unbiased=unbiased)
        r = scatter(scene, access, options.draws)
        print(
            f"| {where} | {samples} | {share:.0%} | {'yes' if unbiased else 'no'} | {r['noise']:.2f} | {r['distance']:.3f} "
            f"| {r['p']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
