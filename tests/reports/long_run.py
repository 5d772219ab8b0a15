"""Writes a run directory as long training runs leave it, without training: ``python -m tests.reports.long_run DIR``.

Attempts of 1,500 tokens in groups of 8, a tool that is called, tests that fail with a traceback, feedback on single turns,
evaluation attempts. The rows go through the training's own writer (``errata.training.rollout_log``); only the numbers are
made up. ``DIR/distil-0`` and ``DIR/distil-1`` are two seeds.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from errata.contexts import Rendered
from errata.ops.scores import TokenScores
from errata.records import Rollout, TeacherContext, Verdict
from errata.reports.rundir import RunDirectory
from errata.training.batch import GenerationBatch, LocalSignals, TeacherOutputs, TokenBatch
from errata.training.rollout_log import RolloutLog, write_evaluation

QUESTION = """Write a function `merge(intervals)` that merges overlapping intervals.

    merge([[1, 3], [2, 6], [8, 10]]) == [[1, 6], [8, 10]]

Touching intervals are merged, too: [1, 4] and [4, 5] become [1, 5]. The input is not sorted, and may be empty.
Use the tool `run_tests` as often as you like; then give the whole function once more."""
PROMPT = [{"role": "system", "content": "You write Python."}, {"role": "user", "content": QUESTION}]
SHOWN = QUESTION + "\n\nYour attempt was tested:\n{}\n\nSolve it correctly."
THOUGHTS = (
    "First the intervals are sorted by their start, because only then can each be compared with the last one alone.",
    "If the next start is not after the end of the last interval, they overlap, and the end becomes the larger of the two.",
    "An empty list has no first interval, so the loop must not read one before it knows that there is one.",
    "Two intervals that touch at one point are merged as well, so the comparison has to be `<=` and not `<`.",
    "An interval may lie wholly inside the last one; then the end must stay as it is, which is what `max` does.",
    "Changing the lists that were passed in would surprise the caller, so I copy the first interval of every run.",
)
CODE = """def merge(intervals):
    merged = []
    for start, end in sorted(intervals):
        if merged and start {} merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
"""
TRACEBACK = """1 of 6 tests failed.
Traceback (most recent call last):
  File "test_merge.py", line 14, in test_touching
    assert merge([[1, 4], [4, 5]]) == [[1, 5]], "intervals that touch are merged"
           ~~~~~^^^^^^^^^^^^^^^^^^
AssertionError: intervals that touch are merged
  expected: [[1, 5]]
  returned: [[1, 4], [4, 5]]"""
PASSED = "6 of 6 tests passed."
TURN = "The comparison excludes intervals that touch, as the tool's output says."
GROUP, STEPS, TOKENS = 8, 40, 1500


class Words:
    """A tokenizer for the made-up texts: a token is a word with the space before it, or one other character."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        found = re.findall(r"<\|\w+\|>|</?\w+>| ?\w+|\s|[^\w\s]", text)
        assert "".join(found) == text
        for word in found:
            if word not in self.ids:
                self.ids[word] = len(self.words)
                self.words.append(word)
        return [self.ids[word] for word in found]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


def make_long_run(
    folder: Path, *, seed: int = 0, method: str = "distil", steps: int = STEPS, tokens: int = TOKENS
) -> Path:
    """One run; the same arguments give the same run."""
    rng = random.Random(seed)
    run = RunDirectory(folder)
    run.open(
        {
            "model": "a/model-of-8b", "task": "merge.py", "method": method, "max_steps": steps, "eval_k": GROUP, "seed": seed,
            "learning_rate": 1e-5, "num_generations": GROUP, "generation_batch_size": 2 * GROUP, "max_completion_length": tokens,
            "method_settings": {"divergence": "forward_ce", "sources": ["sibling", "feedback"]},
        }
    )  # fmt: skip
    words = Words()

    def write(stream: str, row: Mapping[str, Any]) -> None:
        """As the training does; wrong attempts get feedback on their first turn."""
        run.write(stream, row if row["reward"] else {**row, "turn_feedback": [TURN, ""]})

    log = RolloutLog(write, words, keep=2, threshold=1.0)
    for step in range(steps + 1):
        skill = 0.15 + 0.7 / (1 + math.exp(5 - 10 * step / steps)) + rng.gauss(0, 0.02)
        if step:
            batch = _batch(rng, words, step, skill, tokens)
            log.write(
                step, batch, _scores(rng, batch, words), batch.rollouts, lambda row, b=batch: _likeliest(b, row, words)
            )
            run.write("metrics", _metrics(rng, step, skill, tokens))
        if step % (steps // 4) == 0:
            rate = min(max(skill, 0.0), 1.0)
            row = {
                "step": step,
                "task": "merge.py",
                "split": "test",
                "n_problems": 4,
                "k": GROUP,
                "length": tokens - 40.0 * rate,
            }
            for name, value in {f"avg@{GROUP}": rate, f"pass@{GROUP}": 1 - (1 - rate) ** 3}.items():
                row |= {name: value, f"{name}_low": max(value - 0.06, 0.0), f"{name}_high": min(value + 0.06, 1.0)}
            run.write("eval", row | {"teacher_accuracy": 0.9, "format_rate": 0.95, "unjudged": 0})
            attempts = [r for p in range(2) for r in _group(rng, f"merge/test/{p}", skill, tokens // 3)]
            write_evaluation(run.write, step, attempts, k=GROUP, problems=1)
    run.finish()
    return run.path


def _metrics(rng: random.Random, step: int, skill: float, tokens: int) -> dict[str, float]:
    return {
        "step": step,
        "loss": 0.4 - 0.2 * skill,
        "grad_norm": 0.4 + 0.1 * rng.random() + (20.0 if step == 7 else 0.0),
        "reward": skill,
        "completions/mean_length": tokens - 60 * skill + 10 * rng.random(),
        "entropy": 0.5 - 0.3 * skill,
        "learning_rate": 1e-5,
        "teacher/entropy": 0.1,
        "teacher/gap": -0.2 * (1 - skill) + 0.02 * rng.gauss(0, 1),
        "teacher/divergence": 0.3 * (1 - skill),
        "future_credit": 12 * (1 - skill),
        "local_cost": 0.1 * (1 - skill),
        "context/sibling": skill,
        "context/feedback": 1 - skill,
        "step_time": 41.0 + rng.random(),
    }


def _turns(rng: random.Random, right: bool, tokens: int) -> list[tuple[str, str]]:
    """Role and text of each turn: thinking with a call, the tool's output, the answer."""
    words = Words()
    thinking = ""
    while len(words.encode(thinking)) < tokens - 260:
        thinking += rng.choice(THOUGHTS) + (" " if rng.random() < 0.7 else "\n\n")
    cut = thinking.find(". ", len(thinking) // 2) + 1
    call = (
        '\n<tool_call>{"name": "run_tests", "arguments": {"code": "'
        + CODE.format("<").replace("\n", "\\n")[:120]
        + '..."}}</tool_call><|end|>'
    )
    return [
        ("assistant", thinking[:cut] + call),
        ("tool", f"<|tool|>{TRACEBACK}<|end|><|assistant|>"),
        ("assistant", f"{thinking[cut:]}\n```python\n{CODE.format('<=' if right else '<')}```<|end|>"),
    ]


def _group(rng: random.Random, problem: str, skill: float, tokens: int, first: int = 0) -> list[Rollout]:
    found = []
    for number in range(GROUP):
        right = rng.random() < skill
        turns = _turns(rng, right, tokens)
        verdict = Verdict(float(right), PASSED if right else TRACEBACK, "tests")
        messages = [
            {
                "role": "assistant",
                "content": turns[0][1],
                "tool_calls": [{"function": {"name": "run_tests", "arguments": {}}}],
            },
            {"role": "tool", "name": "run_tests", "content": TRACEBACK},
            {"role": "assistant", "content": turns[2][1]},
        ]
        whole = "".join(text for _, text in turns)
        row = {"texts": turns}
        found.append(
            Rollout(first + number, problem, PROMPT, whole, verdict, length=tokens, turns=tuple(messages), row=row)
        )
    return found


def _batch(rng: random.Random, words: Words, step: int, skill: float, tokens: int) -> GenerationBatch:
    rollouts = [
        r for p in range(2) for r in _group(rng, f"merge/train/{(2 * step + p) % 11}", skill, tokens, p * GROUP)
    ]
    ids = [[(i, role == "assistant") for role, text in r.row["texts"] for i in words.encode(text)] for r in rollouts]
    longest = max(map(len, ids))
    pad = [row + [(0, False)] * (longest - len(row)) for row in ids]
    mask = torch.tensor([[own for _, own in row] for row in pad])
    here = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    none = torch.zeros(len(rollouts), 1, dtype=torch.long)
    batch = TokenBatch(
        none, none, torch.tensor([[i for i, _ in row] for row in pad]), here, mask, torch.zeros(len(rollouts))
    )
    contexts = [
        TeacherContext("none", "solved, no other success")
        if r.reward
        else TeacherContext("feedback", "tests on its own attempt", feedback=r.verdict.feedback)
        for r in rollouts
    ]
    shown = [Rendered([PROMPT[0], {"role": "user", "content": SHOWN.format(c.feedback)}]) for c in contexts]
    states = tuple(None if r.reward else torch.zeros(1) for r in rollouts)
    return GenerationBatch(rollouts, contexts, shown, batch, TeacherOutputs(states), None)


def _scores(rng: random.Random, batch: GenerationBatch, words: Words) -> TokenScores:
    """Small noise everywhere; where a wrong attempt writes the comparison or speaks of touching, the teacher disagrees."""
    b, t = batch.tokens.completion_ids.shape
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    student = -0.3 * torch.rand(b, t, generator=generator) ** 3
    noise = 0.15 * torch.rand(b, t, generator=generator) ** 4
    slip = torch.zeros(b, t)
    for row, rollout in enumerate(batch.rollouts):
        for at, i in enumerate(batch.tokens.completion_ids[row].tolist()):
            word = words.words[i]
            if not rollout.reward and word in ("<", " touch", " not") and bool(batch.tokens.mask[row, at]):
                slip[row, at] = 3.5 if word == "<" else 1.2
    slip[0, 40] = 60.0  # one outlier in one attempt of each step
    divergence = (noise + slip) * batch.tokens.mask
    future = divergence.flip(1).cumsum(1).flip(1) - divergence
    signals = LocalSignals(
        advantage=future.mean() - future,
        rl_weight=batch.tokens.mask * 0.3,
        sd_weight=batch.tokens.mask * 1.0,
        rl_count=torch.ones(()),
        sd_count=torch.ones(()),
        per_token={"future_credit": future},
        per_rollout={"pass_rate": torch.full((b,), 0.4)},
    )
    object.__setattr__(batch, "signals", signals)
    entropy = 0.4 * torch.rand(b, t, generator=generator)
    given = {
        "student_logp": student, "teacher_logp": student - slip.clamp(max=8), "student_entropy": entropy,
        "teacher_entropy": entropy * 0.6, "divergence": divergence + entropy * 0.6,
    }  # fmt: skip
    return TokenScores(**{name: given.get(name) for name in TokenScores._fields})


def _likeliest(batch: GenerationBatch, row: int, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    ids = batch.tokens.completion_ids[row]
    right = {"<": words.encode("=")[0]}
    tokens = torch.stack([ids, ids.roll(1), ids.roll(2), ids.roll(3)], dim=1)
    chances = torch.tensor([0.97, 0.02, 0.005, 0.001]).repeat(len(ids), 1)
    for at, i in enumerate(ids.tolist()):
        if words.words[i] == "<" and not batch.rollouts[row].reward:
            tokens[at, 1] = right["<"]
            chances[at, 0], chances[at, 1] = 0.04, 0.93
    return tokens, chances


if __name__ == "__main__":
    for number in range(2):
        print(make_long_run(Path(sys.argv[1]) / f"distil-{number}", seed=number))
