"""Accuracy of the house policy: without a context and in each teacher context, per task and under unseen rulebooks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from house_data import Rulebook, draw_expression
from jinja2 import Template
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.feedback.rulebook import Rule, judge, rule_of, solve
from errata.tasks import load

CONTEXTS = ("solution", "correction", "trace all", "trace first")


@dataclass(frozen=True)
class Problem:
    expression: str
    rule: Rule


def problem_sets(n: int, seed: int = 0) -> dict[str, list[Problem]]:
    """Held-out problems of both tasks, and chains under random tables: each drawn for its problem alone."""
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
    """One completion per user message, sampled (greedy at temperature 0)."""
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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template, *, n: int = 256, k: int = 8
) -> dict[str, dict[str, float]]:
    """Per problem set: avg@k and pass@k plain, and accuracy in each context, shown each problem's first failed attempt.

    All sampled at temperature 1.
    """
    result = {}
    for name, problems in problem_sets(n).items():
        tries = sample(model, tokenizer, [f"{p.expression}=?" for p in problems for _ in range(k)])
        solved = [
            judge(t, problems[i // k].expression, problems[i // k].rule).score == 1.0 for i, t in enumerate(tries)
        ]
        row = {
            f"avg@{k}": sum(solved) / len(solved),
            f"pass@{k}": sum(any(solved[i : i + k]) for i in range(0, len(solved), k)) / n,
        }
        for context in CONTEXTS:
            users, problems_shown = [], []
            for i, problem in enumerate(problems):
                attempt = next(
                    (t for t, ok in zip(tries[i * k : i * k + k], solved[i * k : i * k + k], strict=True) if not ok),
                    None,
                )
                if attempt is None:
                    continue
                problems_shown.append(problem)
                users.append(show(template, problem, attempt, context))
            texts = sample(model, tokenizer, users)
            row[context] = sum(
                judge(t, p.expression, p.rule).score == 1.0 for t, p in zip(texts, problems_shown, strict=True)
            ) / len(problems_shown)
        result[name] = row
    return result


def show(template: Template, problem: Problem, attempt: str, context: str) -> str:
    """The teacher's user message."""
    kind, _, trace = context.partition(" ")
    if kind == "solution":
        return template.render(
            prompt=f"{problem.expression}=?", solution=solve(problem.expression, problem.rule), attempt="", feedback=""
        )
    feedback = judge(attempt, problem.expression, problem.rule, feedback=kind, trace=trace or "all").feedback
    return template.render(prompt=f"{problem.expression}=?", solution="", attempt=attempt, feedback=feedback)
