"""Accuracy of the house policy without a context and in each teacher context, per task and under unseen rulebooks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from house_data import Rulebook, draw_expression, teacher_message
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.contexts.render import Renderer
from errata.feedback.rulebook import Rule, judge, rule_of, solve
from errata.tasks import load

CONTEXTS = ("solution", "correction", "trace all", "trace first")


@dataclass(frozen=True)
class Problem:
    expression: str
    rule: Rule


def problem_sets(n: int, seed: int = 0) -> dict[str, list[Problem]]:
    """``n`` held-out problems of each task, and ``n`` under random tables, a new table for each problem."""
    sets = {
        name: [Problem(r["expression"], rule_of(r["rulebook"])) for r in load(name, split="test").select(range(n))]
        for name in ("rulebook/sharpen", "rulebook/new-rule")
    }
    rng = random.Random(f"unseen {seed}")
    sets["random tables"] = [
        Problem(draw_expression(rng, 5, "test"), Rulebook(dict.fromkeys("+-*"), rng)) for _ in range(n)
    ]
    return sets


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    users: Sequence[str],
    temperature: float = 1.0,
    batch: int = 256,
) -> list[str]:
    """One completion per user message, at most 64 tokens; greedy at temperature 0."""
    out: list[str] = []
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": u}], tokenize=False, add_generation_prompt=True)
        for u in users
    ]
    how = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    for start in range(0, len(chats), batch):
        inputs = tokenizer(chats[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        made = model.generate(**inputs, max_new_tokens=64, **how)
        out += tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return out


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, *, n: int = 256, k: int = 8
) -> dict[str, dict[str, float]]:
    """avg@k and pass@k without a context, and the accuracy in each of ``CONTEXTS``, for each of the ``problem_sets``.

    In a context the problem's first failed attempt is shown; a problem without one is left out, and the accuracy over no
    problem is NaN. All sampled at temperature 1.
    """
    result = {}
    for name, problems in problem_sets(n).items():
        attempts = sample(model, tokenizer, [f"{p.expression}=?" for p in problems for _ in range(k)])
        solved = [is_right(problems[i // k], attempt) for i, attempt in enumerate(attempts)]
        row = {f"avg@{k}": mean(solved), f"pass@{k}": mean([any(solved[i : i + k]) for i in range(0, n * k, k)])}
        failed = []
        for i, problem in enumerate(problems):
            own = slice(i * k, i * k + k)
            wrong = [a for a, right in zip(attempts[own], solved[own], strict=True) if not right]
            failed += [(problem, wrong[0])] if wrong else []
        for context in CONTEXTS:
            texts = sample(model, tokenizer, [show(renderer, p, attempt, context) for p, attempt in failed])
            row[context] = mean([is_right(p, text) for (p, _), text in zip(failed, texts, strict=True)])
        result[name] = row
    return result


def is_right(problem: Problem, text: str) -> bool:
    return judge(text, problem.expression, problem.rule).score == 1.0


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def show(renderer: Renderer, problem: Problem, attempt: str, context: str) -> str:
    """The teacher's user message in one of the ``CONTEXTS``."""
    kind, _, trace = context.partition(" ")
    if kind == "solution":
        return teacher_message(renderer, problem.expression, solution=solve(problem.expression, problem.rule))
    feedback = judge(attempt, problem.expression, problem.rule, feedback=kind, trace=trace or "all").feedback
    return teacher_message(renderer, problem.expression, attempt=attempt, feedback=feedback)
