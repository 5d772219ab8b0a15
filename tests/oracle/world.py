"""A small world with scripted completions, and a record of what errata's trainer does in it.

Nothing is sampled: the completions of generation batch g are a function of the configuration's name and g. So a run costs
half a second, and the oracle knows every completion without being told.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer

from errata import methods
from errata.experts import Access
from errata.records import Verdict

GROUP = 4
LONGEST = 9
"""Tokens of a completion at most, the end of the turn included."""
TEMPLATE = (
    "{{ prompt }}|{{ solution }}|{{ feedback }}|{{ attempt }}"
    "{% for tried in earlier %}+{{ tried.attempt }}:{{ tried.feedback }}{% endfor %}"
)
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@dataclass(frozen=True)
class Configuration:
    """One run of the real trainer and of the oracle."""

    name: str
    method: str
    args: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainer."""
    steps: int = 3
    lora: bool = False
    ratio: str = ""
    """Corrections for the sampling engine (vLLM): ``token`` or ``sequence``; none unless given."""
    known_tokens: int = 0
    """Of the teacher's distributions only so many likeliest tokens are known; 0: all."""
    problems: int = 2
    """Rows of the data; a step takes two."""
    default: bool = False
    """Part of the default tests; else slow."""

    def setting(self, name: str, default: Any) -> Any:
        return self.settings.get(name, default)


def prompt_of(problem: int) -> str:
    """As ``tests.training.worlds.rows`` has it."""
    return f"Write letters, {problem}"


def reference_of(problem: int) -> str:
    """Likewise."""
    return "abcabc"[: 3 + problem % 3]


def judge(text: str) -> Verdict:
    """1 for more letters than digits, ½ for equally many, else 0; a ``q`` is not judged, and a ``z`` makes feedback leak."""
    letters, digits = sum(c.isalpha() for c in text), sum(c.isdigit() for c in text)
    if "q" in text:
        return Verdict(None)
    score = 1.0 if letters > digits else 0.5 if letters == digits else 0.0
    return Verdict(score, f"{digits}!", "trace", leaks_answer="z" in text)


def script(configuration: Configuration, generation: int, count: int) -> list[list[int]]:
    """Token ids of the ``count`` completions of a generation batch. In every third one all attempts fail."""
    found = []
    for index in range(count):
        rng = random.Random(f"{configuration.name}-{generation}-{index}")
        good = rng.random() < 0.5 and generation % 3 != 1
        length = rng.randint(1, LONGEST - 1)
        text = "".join(
            rng.choice(string.ascii_lowercase if (rng.random() < 0.8) == good else string.digits) for _ in range(length)
        )
        if generation % 3 == 1:
            text = (
                "".join(c if c.isdigit() else rng.choice("0123456789z") for c in text)
                if judge(text).score == 1
                else text
            )
        ids = [6 + string.printable.index(c) for c in text]
        finished = length < LONGEST - 1 or rng.random() < 0.5
        # One that does not end was cut off at the limit.
        found.append([*ids, 1] if finished else [*ids, 6 + rng.randrange(10)])
    return found


def ratio_of(configuration: Configuration, generation: int, count: int, length: int) -> Tensor:
    """(count, length), or (count, 1) for one correction of a whole completion."""
    generator = torch.Generator().manual_seed(generation)
    shape = (count, 1 if configuration.ratio == "sequence" else length)
    return 0.4 + 1.2 * torch.rand(shape, generator=generator)


@dataclass
class Step:
    """One optimizer step of the real trainer."""

    generation: int
    """Which generation batch it learns from."""
    weights: dict[str, Tensor]
    """The student's before the step."""
    micro_batches: list[list[int]]
    """Which rollouts of the generation batch each holds."""
    gradients: dict[str, Tensor]


@dataclass
class Record:
    """A run of the real trainer."""

    steps: list[Step]
    problems: list[list[int]]
    """Of each generation batch, the problem of each rollout."""
    method_settings: dict[str, Any]
    kind: str
    """The method's class."""


def policy(*, lora: bool = False) -> Any:
    """A float64 model; with a LoRA adapter that was trained before, whose second factor is not 0."""
    model = build_model(len(TOKENIZER), hidden=16, layers=1).double()
    if not lora:
        return model
    adapted = get_peft_model(model, LoraConfig(**LORA), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return adapted


def run(configuration: Configuration, folder: Path) -> Record:
    """Train with errata's trainer."""
    settings: dict[str, Any] = {
        "max_grad_norm": 0.0,
        "max_steps": configuration.steps,
        "learning_rate": 3e-2,
        "max_completion_length": LONGEST,
        "context_template": TEMPLATE,
        "rollouts_saved": 0,
        "seed": 3,
        **configuration.settings,
    }
    method = methods.get(configuration.method, **configuration.args)
    real = trainer(
        folder,
        method,
        model=policy(lora=configuration.lora),
        verifiers=[lambda completions, **_: [judge(c[-1]["content"]) for c in completions]],
        train_rows=configuration.problems,
        access=Access(gives="topk", top_k=configuration.known_tokens) if configuration.known_tokens else None,
        **settings,
    )
    watch = _Watch(real, configuration)
    real.add_callback(watch)
    with watch.scripted():
        real.train()
    return Record(watch.steps, watch.problems, method.settings(), type(method).__name__)


class _Watch(TrainerCallback):
    """Feeds the script to a trainer, and notes what it does."""

    def __init__(self, real: Any, configuration: Configuration) -> None:
        self.real, self.configuration = real, configuration
        self.steps: list[Step] = []
        self.problems: list[list[int]] = []
        self._micro_batches: list[list[int]] = []
        on_rollouts, batch_loss = real.on_rollouts, real.batch_loss

        def noting_rollouts(rows: Sequence[Any], tokens: Any) -> Any:
            self.problems.append([int(row["problem_id"].removeprefix("p")) for row in rows])
            return on_rollouts(rows, tokens)

        def noting_loss(model: Any, rows: Tensor, trl_loss: Any) -> Tensor:
            self._micro_batches.append(rows.tolist())
            return batch_loss(model, rows, trl_loss)

        real.on_rollouts, real.batch_loss = noting_rollouts, noting_loss
        if method_samples(real):
            real._generate_single_turn = lambda prompts, *_, **__: (
                script(configuration, len(self.problems), len(prompts)),
                None,
            )

    def scripted(self) -> Any:
        """A context in which TRL's batches carry the configuration's corrections for the sampling engine."""
        original = GRPOTrainer._generate_and_score_completions

        def corrected(trainer: Any, inputs: Any) -> Any:
            batch = original(trainer, inputs)
            if self.configuration.ratio:
                shape = batch["completion_ids"].shape
                batch["importance_sampling_ratio"] = ratio_of(self.configuration, len(self.problems), *shape)
            return batch

        return mock.patch.object(GRPOTrainer, "_generate_and_score_completions", corrected)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        named = list(self.real.model.named_parameters())
        weights = {n: p.detach().clone() for n, p in named}
        gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
        self.steps.append(Step(len(self.problems) - 1, weights, self._micro_batches, gradients))
        self._micro_batches = []


def method_samples(real: Any) -> bool:
    return bool(real.method.learns_from == "rollouts")
