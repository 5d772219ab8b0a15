"""Verifiers as TRL's reward functions: TRL gets floats, the trainer keeps the verdicts and what they were about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from errata.contexts import has_tools, transcript
from errata.feedback import judge
from errata.records import Verdict

_NOT_COLUMNS = ("prompts", "completions", "completion_ids")


class Recorder:
    """Wraps one verifier so that TRL can call it; remembers the last batch: what was asked, answered and said to it.

    A rollout that could not be judged gets ``None``, which TRL leaves out of its group's mean.
    """

    def __init__(self, verifier: Any, *, timeout_s: float) -> None:
        self.verifier, self.timeout_s = verifier, timeout_s
        self.__name__ = getattr(verifier, "__name__", type(verifier).__name__)
        self.verdicts: list[Verdict] = []
        self.prompts: list[Any] = []
        self.completions: list[Any] = []

    def __call__(
        self, *, prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        self.verdicts = judge(
            self.verifier,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            columns=columns,
            timeout_s=self.timeout_s,
        )
        self.prompts, self.completions = list(prompts), list(completions)
        return [v.score for v in self.verdicts]


def attempt(completion: Any) -> dict[str, Any]:
    """A ``Rollout``'s fields that tell a completion, text or messages: its transcript, and its turns if tools were called."""
    turns = tuple(dict(message) for message in completion) if has_tools(completion) else ()
    return {"completion": transcript(completion), "turns": turns}


def combined(verdicts: Sequence[Verdict], weights: Sequence[float]) -> Verdict:
    """One verdict of several on the same rollout: weighted sum of the scores given, all feedback joined.

    Raises ``ValueError`` where the numbers of verdicts and weights differ.
    """
    if len(verdicts) == 1 and len(weights) == 1 and weights[0] == 1.0:
        return verdicts[0]
    scores = [w * v.score for v, w in zip(verdicts, weights, strict=True) if v.score is not None]
    told = [v for v in verdicts if v.feedback.strip() and v.kind != "error"]
    errors = [v for v in verdicts if v.kind == "error"]
    if not scores:
        return errors[0] if errors else Verdict(None)
    return Verdict(
        math.fsum(scores),
        feedback="\n".join(v.feedback.strip() for v in told),
        kind="+".join(dict.fromkeys(v.kind for v in told if v.kind)),
        leaks_answer=any(v.leaks_answer for v in told),
        info={key: value for v in verdicts for key, value in v.info.items()},
    )
