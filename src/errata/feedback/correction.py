"""Corrections of failed rollouts: from a column of the data, a program, or a person at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from errata.feedback.custom import Verifier, as_verdicts, completion_text, verifier_name
from errata.records import Rollout, Verdict, is_solved

__all__ = ["Expert", "ask_person", "corrected_verdict", "with_correction"]

Expert = Callable[[Rollout], str | None]
"""A function from a failed rollout with its verdict to a correction, or ``None`` for none."""


def with_correction(
    verifier: Verifier, source: str | Expert, *, threshold: float = 1.0, leaks_answer: bool = True
) -> Verifier:
    """The verifier, with a correction appended to its feedback where a rollout is not solved.

    Args:
        verifier: not a coroutine function.
        source: the name of a column (an empty or missing text is no correction), or an :data:`Expert`, called for one
            rollout after the other.
        threshold: the score from which a rollout counts as solved.
        leaks_answer: whether corrections contain the answer; most do.
    Raises:
        ValueError: at a call, if the column is missing.
    """
    name = f"{verifier_name(verifier)}+correction"

    def corrected(*, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if isinstance(source, str) and source not in columns:
            raise ValueError(f"columns: corrections come from the column {source!r}, and the data has none")
        n = len(completions)
        judged = as_verdicts(verifier(prompts=prompts, completions=completions, **columns), n=n, name=name)
        rows = {key: values for key, values in columns.items() if isinstance(values, list | tuple) and len(values) == n}
        verdicts = []
        for index, verdict in enumerate(judged):
            if verdict.score is None or is_solved(verdict.score, threshold):
                verdicts.append(verdict)
                continue
            row = {key: values[index] for key, values in rows.items()}
            rollout = Rollout(
                index=index,
                problem_id=str(row.get("problem_id", "")),
                prompt=prompts[index],
                completion=completion_text(completions[index]),
                verdict=verdict,
                reference=row.get("reference"),
                row=row,
            )
            text = row[source] if isinstance(source, str) else source(rollout)
            verdicts.append(corrected_verdict(verdict, text or "", leaks_answer))
        return verdicts

    corrected.__name__ = name
    own = source is ask_person or getattr(verifier, "limits_own_time", False)
    corrected.limits_own_time = own  # type: ignore[attr-defined]
    return corrected


def corrected_verdict(verdict: Verdict, text: str, leaks_answer: bool = True) -> Verdict:
    """The verdict with a correction appended to its feedback; unchanged if the text is empty."""
    text = text.strip()
    if not text:
        return verdict
    return replace(
        verdict,
        feedback="\n\n".join(part for part in (verdict.feedback.strip(), text) if part),
        kind="+".join(part for part in (verdict.kind, "correction") if part),
        leaks_answer=verdict.leaks_answer or leaks_answer,
    )


def ask_person(rollout: Rollout) -> str | None:
    """Show a rollout in the terminal and read a correction: any lines up to an empty one. ``None`` for no line.

    No time limit applies to a verifier with this source. Raises ``RuntimeError`` if there is no terminal.
    """
    if not sys.stdin.isatty():
        raise RuntimeError("asking a person needs a terminal; give a column or a program as the source of corrections")
    problem = rollout.prompt if isinstance(rollout.prompt, str) else str(rollout.prompt[-1]["content"])
    print(f"\n--- problem {rollout.problem_id}\n{problem}\n--- attempt, score {rollout.reward}\n{rollout.completion}")
    if rollout.verdict.feedback:
        print(f"--- feedback\n{rollout.verdict.feedback}")
    print("--- your correction, then an empty line:")
    lines = []
    while line := input():
        lines.append(line)
    return "\n".join(lines) or None
