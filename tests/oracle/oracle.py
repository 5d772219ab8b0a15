"""An independent trainer in float64 and plain loops: contexts, logits, credits, loss, autograd.

It shares with errata the model's forward and the method's settings, and nothing else: no padding, no batches, no fused
operation. ``gradients`` gives for each optimizer step of a recorded run what the real trainer's gradients must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from tests.oracle import world
from tests.oracle.attempts import END, Attempt, Memory, asked, choose_contexts, encode
from tests.oracle.signals import Signal, decide
from tests.oracle.tokens import Known, Score, distilled, entropy, reinforced, score
from torch import Tensor

Weights = dict[str, Tensor]


def gradients(configuration: world.Configuration, record: world.Record) -> Iterator[dict[str, Tensor]]:
    """Of each step, the gradient of every weight that is trained."""
    oracle = Oracle(configuration, record)
    generation = -1
    for number, step in enumerate(record.steps):
        if step.generation != generation:
            generation = step.generation
            oracle.begin(generation, number)
        yield oracle.step(step)


class Oracle:
    """The trainer between two generation batches."""

    def __init__(self, configuration: world.Configuration, record: world.Record) -> None:
        c = self.configuration = configuration
        self.record, self.kind = record, record.kind
        self.model = world.policy().eval()
        self.s: dict[str, Any] = {
            "divergence": "forward_ce",
            "alpha": 0.5,
            "support": "full",
            "entry_clip": None,
            "token_clip": None,
            "importance_clip": None,
            "surrogate": "importance" if record.kind == "SFT" else "clipped",
            "denominators": "shared",
            "epsilon": c.setting("epsilon", 0.2),
            "epsilon_high": c.setting("epsilon_high", 0.28),
            **record.method_settings,
        }
        self.temperature = 1.0 if self.kind == "SFT" else c.setting("temperature", 1.0)
        self.accumulation = c.setting("gradient_accumulation_steps", 1)
        self.micro_batches = c.setting("steps_per_generation", self.accumulation)
        self.memory = Memory(self.s)
        self.attempts: list[Attempt] = []
        self.signals: list[list[Signal]] = []
        self.known: list[list[Known | None]] = []
        self.old: list[list[float]] = []

    # -- a generation batch -----------------------------------------------------------------------------------------

    def begin(self, generation: int, steps_before: int) -> None:
        """Everything that is decided before the first of its optimizer steps."""
        now = self.record.steps[steps_before].weights
        self.attempts = self._attempts(generation)
        self._advantages()
        for a in self.attempts:
            entropies = [float(entropy(logp)) for logp in self._logp(now, asked(a.prompt), a.tokens)]
            a.entropy = sum(entropies) / max(len(entropies), 1)
        if "sources" in self.s:
            groups = [self.attempts[i : i + world.GROUP] for i in range(0, len(self.attempts), world.GROUP)]
            self.memory.observe(groups, steps_before)
            epoch = self._epoch(steps_before)
            choose_contexts(groups, self.kind, self.s, self.memory, epoch, steps_before, seed=3)
        self.known, self.old = [], []
        scores: list[list[Score]] = []
        for a in self.attempts:
            student = self._logp(now, asked(a.prompt), a.tokens)
            teacher: list[Known | None] = [None] * len(student)
            if a.scored and a.shown is not None:
                its = self._teacher_logp(steps_before, asked(a.shown), a.tokens)
                teacher = [Known(logp, self.configuration.known_tokens) for logp in its]
            self.known.append(teacher)
            scores.append([score(p, q, token, self.s) for p, q, token in zip(student, teacher, a.tokens, strict=True)])
            self.old.append([x.student_logp for x in scores[-1]])
        self.ratio = None
        if self.configuration.ratio:
            longest = max(len(a.ids) for a in self.attempts)
            self.ratio = world.ratio_of(self.configuration, generation, len(self.attempts), longest).double()
        ratio = None if self.ratio is None else self.ratio.tolist()
        self.signals = decide(self.kind, self.s, self.attempts, scores, self.memory, ratio)

    def _attempts(self, generation: int) -> list[Attempt]:
        problems = self.record.problems[generation]
        found = []
        completions = world.script(self.configuration, generation, len(problems))
        for index, (problem, ids) in enumerate(zip(problems, completions, strict=True)):
            reference = world.reference_of(problem)
            if self.kind == "SFT":
                ids = [*encode(reference), END][: world.LONGEST]
            a = Attempt(index, problem, world.prompt_of(problem), reference, ids, None, "", False, True)
            verdict = world.judge(a.text)
            a.reward, a.feedback, a.leaks = verdict.score, verdict.feedback, verdict.leaks_answer
            a.counted = ids[-1] == END or not self.configuration.setting("mask_truncated_completions", False)
            found.append(a)
        return found

    def _advantages(self) -> None:
        """Reward less its group's mean; divided by a standard deviation where the run says so."""
        scale = self.configuration.setting("scale_rewards", "none")
        judged = [a for a in self.attempts if a.reward is not None]
        for a in judged:
            group = [b.reward for b in judged if b.index // world.GROUP == a.index // world.GROUP]
            a.advantage = a.reward - sum(group) / len(group)
            if scale != "none":
                a.advantage /= _deviation(group if scale == "group" else [b.reward for b in judged]) + 1e-4

    def _epoch(self, steps: int) -> float:
        """Passes over the data before a step: how often it has shown a generation batch, over the batches of a pass."""
        per_batch = 2 * self.configuration.setting("num_iterations", 1) * self.micro_batches / self.accumulation
        return steps / (self.configuration.problems / 2) / (per_batch / 2)

    # -- models -----------------------------------------------------------------------------------------------------

    def _logp(self, weights: Weights, prompt: list[int], completion: list[int]) -> list[Tensor]:
        """Of each completion token, the log-probabilities (V,) from which it was drawn."""
        if not completion:
            return []
        logits = self._logits(weights, prompt, completion) / self.temperature
        return list(logits.log_softmax(-1))

    def _logits(self, weights: Weights, prompt: list[int], completion: list[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]])
        output = torch.func.functional_call(self.model, self._merged(weights), (ids,))
        logits: Tensor = output.logits[0, len(prompt) - 1 : -1]
        return logits

    def _merged(self, weights: Weights) -> Weights:
        """The plain model's weights: a LoRA adapter adds (alpha / r) B A."""
        found: Weights = {}
        for name, value in weights.items():
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if "lora_" in name:
                continue
            pair = [weights.get(name.replace("base_layer", f"lora_{x}.default")) for x in "AB"]
            if "base_layer" in name and pair[0] is not None and pair[1] is not None:
                value = value + world.LORA["lora_alpha"] / world.LORA["r"] * (pair[1] @ pair[0])
            found[plain] = value
        return found

    def _teacher_logp(self, steps: int, prompt: list[int], completion: list[int]) -> list[Tensor]:
        """Of the teacher after so many optimizer steps."""
        kind = self.configuration.setting("teacher", self.s["teacher"])
        if kind != "trust_region" or not completion:
            return self._logp(self._teacher_weights(kind, steps), prompt, completion)
        w = self.configuration.setting("teacher_base_weight", 0.95)
        live, base = (self._logits(self._at(i), prompt, completion) for i in (steps, 0))
        return list((((1 - w) * live + w * base) / self.temperature).log_softmax(-1))

    def _at(self, step: int) -> Weights:
        return self.record.steps[step].weights

    def _teacher_weights(self, kind: str, steps: int) -> Weights:
        if kind == "live":
            return self._at(steps)
        if kind == "frozen":
            return self._at(0)
        if kind == "sync":
            every = self.configuration.settings["teacher_sync_steps"]
            return self._at(steps - steps % every)
        rate = self.configuration.setting("teacher_rate", self.s["teacher_rate"])
        found = self._at(0)
        for i in range(1, steps + 1):
            found = {name: (1 - rate) * found[name] + rate * value for name, value in self._at(i).items()}
        return found

    # -- an optimizer step ------------------------------------------------------------------------------------------

    def step(self, step: world.Step) -> dict[str, Tensor]:
        weights = {name: w.clone().requires_grad_(name in step.gradients) for name, w in step.weights.items()}
        total = torch.zeros((), dtype=torch.float64)
        for rows in step.micro_batches:
            total = total + self._loss(weights, rows)
        trained = {name: weights[name] for name in step.gradients}
        if not total.requires_grad:  # no token has any weight
            return {name: torch.zeros_like(w) for name, w in trained.items()}
        found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(trained, found, strict=True))

    def _loss(self, weights: Weights, rows: list[int]) -> Tensor:
        """Of one micro-batch."""
        total = torch.zeros((), dtype=torch.float64)
        for i in rows:
            a = self.attempts[i]
            for t, logp in enumerate(self._logp(weights, asked(a.prompt), a.tokens)):
                signal, token = self.signals[i][t], a.tokens[t]
                old = self.old[i][t] if self._remembers else float(logp[token].detach())
                correction = 1.0 if self.ratio is None else float(self.ratio[i, t if self.ratio.shape[1] > 1 else 0])
                if signal.rl:
                    share = correction * self._share("rl", i, rows)
                    total = total + signal.rl * share * reinforced(logp, signal.advantage, token, old, self.s)
                known = self.known[i][t]
                if signal.sd and known is not None:
                    of_rollout = self.ratio is None or self.ratio.shape[1] == 1
                    share = (correction if of_rollout else 1.0) * self._share("sd", i, rows)
                    total = total + signal.sd * share * distilled(logp, known, token, old, self.s)
        return total

    @property
    def _remembers(self) -> bool:
        """Whether the policy may have moved since it sampled."""
        uses = self.micro_batches * self.configuration.setting("num_iterations", 1)
        return bool(self.accumulation % uses)

    def _share(self, stream: str, i: int, rows: list[int]) -> float:
        """What one token of attempt ``i`` counts for in a stream of this micro-batch."""
        kind = self.configuration.setting("loss_type", "dapo")
        if kind == "dapo":
            every = sum(self._counted(stream, j) for j in range(len(self.attempts)))
            return self.micro_batches / self.accumulation / every
        if kind == "bnpo":
            return 1 / sum(self._counted(stream, j) for j in rows) / self.accumulation
        if kind == "grpo":
            return 1 / self._counted(stream, i) / len(rows) / self.accumulation
        return 1 / len(rows) / world.LONGEST / self.accumulation

    def _counted(self, stream: str, i: int) -> int:
        """Tokens of an attempt that divide a stream: all, or those with weight where denominators are routed."""
        if self.s["denominators"] == "shared":
            return len(self.attempts[i].tokens)
        return sum(getattr(signal, stream) > 0 for signal in self.signals[i])


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
