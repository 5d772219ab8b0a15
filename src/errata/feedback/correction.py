"""Corrections by an expert: from a column of the data, or asked of a person or a program for every failed attempt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from errata.feedback.custom import Verifier, as_verdicts, completion_text, verifier_name
from errata.records import Rollout, Verdict

__all__ = ["Expert", "ask_person", "corrected_verdict", "with_correction"]

Expert = Callable[[Rollout], str | None]
"""Sees a failed attempt and its verdict, answers with a correction, or ``None`` for no comment."""


def with_correction(
    verifier: Verifier, source: str | Expert, *, threshold: float = 1.0, leaks_answer: bool = True
) -> Verifier:
    """The verifier with corrections: attempts it scores below ``threshold`` get one after what it says itself.

    ``source`` is the name of a column (an empty or missing text is no correction) or an :data:`Expert`, asked one attempt
    after the other. ``leaks_answer`` says whether corrections contain the answer; most do. The verifier must not be a
    coroutine function. Calling it raises ``ValueError`` if the column is missing.
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
            if verdict.score is None or verdict.score >= threshold:
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
    """The verdict with a correction after what it says itself; unchanged where the text is empty."""
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
    """Shows an attempt in the terminal and reads a correction, any lines up to an empty one; nothing is no comment.

    Raises ``RuntimeError`` where there is no terminal. A person takes time, so no limit is put on the verifier.
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
