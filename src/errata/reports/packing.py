"""The rollouts of a report: which of the recorded ones it contains, and what it contains of each.

A report has a size limit, and a run may record thousands of rollouts. So the report takes rollouts step by step as long as
they fit: the first step, the last, then the middle, the quarters, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.records import is_solved
from errata.reports.runs import Run
from errata.reports.table import shortened

HEAD, TAIL = 1400, 600
"""Tokens kept of a longer rollout, from its beginning and from its end."""
MAX_TEXT = 6000
"""Characters kept of a prompt or a feedback."""
_AROUND = 200
"""Characters of the teacher's prompt shown before and after what was added to it."""
_LIKELY = 0.01
"""Teacher probability from which an alternative token is shown."""
_MISSES = 10
"""Rollouts in a row that do not fit, after which no further one is tried."""


def attempts(runs: Sequence[Run], budget: int) -> tuple[list[dict[str, Any]], int]:
    """The packed rollouts in the order of steps, at most ``budget`` bytes of JSON in all, and how many were recorded."""
    chosen: list[dict[str, Any]] = []
    recorded = 0
    for index, run in enumerate(runs):
        rows = run.rollouts()
        ledger = any("ledger/problems" in row for row in run.metrics)
        recorded += len(rows)
        left, misses = budget // len(runs), 0
        kept: dict[int, dict[str, Any]] = {}
        for number in _spread([int(row["step"]) for row in rows]):
            try:
                packed = pack(rows[number], ledger=ledger, threshold=run.success_threshold) | {"run": index}
            except (TypeError, ValueError, AttributeError, LookupError) as error:
                raise ValueError(
                    f"run: row {number + 1} of {run.path / 'rollouts.jsonl'} is not as errata writes it "
                    f"({type(error).__name__}: {error}); remove that row"
                ) from error
            size = len(embedded(packed)) + 1
            if size <= left:
                kept[number] = packed
                left -= size
                misses = 0
            elif (misses := misses + 1) == _MISSES:
                break
        chosen += [kept[number] for number in sorted(kept)]
    return chosen, recorded


def embedded(value: Any) -> bytes:
    """``value`` as JSON for a ``<script>`` element: no text in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes its JSON escape


def pack(row: Mapping[str, Any], *, ledger: bool = True, threshold: float = 1.0) -> dict[str, Any]:
    """One row of ``rollouts.jsonl`` as the report's script reads it. Keys that the row lacks are left out or empty.

    Args:
        ledger: the run has a pass-rate ledger. Without one ``rate`` is the group's share of solved rollouts.
        threshold: the run's ``success_threshold``, for ``solved``.
    """
    tokens = [str(token) for token in row.get("tokens") or [row.get("completion", "")]]
    context = row.get("context") or {}
    generated = row.get("generated") or [1] * len(tokens)
    packed: dict[str, Any] = {
        "step": row.get("step", 0),
        "problem": str(row.get("problem_id", "")),
        "prompt": [[role, shortened(text, MAX_TEXT)] for role, text in messages(row.get("prompt") or "")],
        "tokens": _kept(readable(tokens, str(row.get("completion", "")))),
        "reward": row.get("reward"),
        "solved": is_solved(row.get("reward"), threshold),
        "kind": row.get("kind") or "",
        "feedback": shortened(row.get("feedback") or "", MAX_TEXT),
        "rate": row.get("pass_rate" if ledger else "group_rate"),
        "context": {key: context[key] for key in ("kind", "why", "leaks_answer", "cut", "dropped") if context.get(key)},
        "signals": {k: _values(_kept(v)) for k, v in (row.get("signals") or {}).items() if len(v) == len(tokens)},
    }
    if not all(generated):
        packed["given"] = [i for i, own in enumerate(_kept(generated)) if not own]
    if len(tokens) > HEAD + TAIL:
        packed["gap"] = [HEAD, len(tokens) - HEAD - TAIL]
    if context.get("prompt") is not None:
        packed["shown"] = [
            [role, _edges(before), shortened(added, MAX_TEXT), _edges(after)]
            for role, before, added, after in _additions(messages(row.get("prompt") or ""), messages(context["prompt"]))
        ]
    if row.get("alternatives") and len(row["alternatives"]) == len(tokens):
        packed["alternatives"] = [_likely(choices) for choices in _kept(row["alternatives"])]
    return packed


def messages(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as pairs of role and text. A plain text has no role; a picture becomes ``[image]``."""
    if isinstance(prompt, str):
        return [("", prompt)]
    found = []
    for message in prompt:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text") or f"[{part.get('type')}]" for part in content)
        found.append((str(message.get("role", "")), content))
    return found


def readable(tokens: Sequence[str], completion: str) -> list[str]:
    """``tokens``, with characters repaired whose bytes were decoded in separate tokens.

    The first token of such a sequence gets the text that the completion has there, and the others become empty. A sequence
    that cannot be found in the completion stays as it is.
    """
    if not any("\ufffd" in token for token in tokens):
        return list(tokens)
    found, at, i = list(tokens), 0, 0
    while i < len(tokens):
        if "\ufffd" not in tokens[i]:
            where = completion.find(tokens[i], at)
            at = where + len(tokens[i]) if where >= 0 else at
            i += 1
            continue
        end = next((j for j in range(i, len(tokens)) if "\ufffd" not in tokens[j]), len(tokens))
        where = completion.find(tokens[end], at) if end < len(tokens) else len(completion)
        # Special tokens are not in the completion; the run then reaches to its end.
        where = len(completion) if where < 0 else where
        if where > at:
            found[i:end] = [completion[at:where], *[""] * (end - i - 1)]
            at = where
        i = end
    return found


def _additions(
    prompt: Sequence[tuple[str, str]], shown: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str, str, str]]:
    """What a teacher's prompt has beyond the student's: role, text before, added text, text after."""
    for i, (role, text) in enumerate(shown):
        student_text = prompt[i][1] if i < len(prompt) and prompt[i][0] == role else ""
        start = _in_common(student_text, text)
        end = _in_common(student_text[start:][::-1], text[start:][::-1])
        if text[start : len(text) - end]:
            yield role, text[:start], text[start : len(text) - end], text[len(text) - end :]


def _in_common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _edges(text: str) -> str:
    return shortened(text, 2 * _AROUND)


def _kept(values: Sequence[Any]) -> list[Any]:
    values = list(values)
    return values if len(values) <= HEAD + TAIL else values[:HEAD] + values[-TAIL:]


def _values(values: Sequence[float | None]) -> Any:
    """The values with three significant digits; one number if all are the same."""
    short = [None if v is None else float(f"{v:.3g}") for v in values]
    short = [int(v) if v is not None and v == int(v) else v for v in short]
    return short[0] if short and all(v == short[0] for v in short) else short


def _likely(choices: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The most probable token, and those with a probability of at least ``_LIKELY``."""
    return [[str(t), float(f"{p:.3g}")] for i, (t, p) in enumerate(choices) if i == 0 or p >= _LIKELY]


def _spread(steps: Sequence[int]) -> list[int]:
    """Indices of the rows: first those of the first and last step, then of the middle, the quarters, ..."""
    unique = sorted(set(steps))
    order: dict[int, None] = dict.fromkeys([0, len(unique) - 1]) if unique else {}
    width = len(unique)
    while len(order) < len(unique):
        width = max(width // 2, 1)
        order |= dict.fromkeys(range(0, len(unique), width))
    rank = {unique[position]: n for n, position in enumerate(order)}
    return sorted(range(len(steps)), key=lambda i: (rank[steps[i]], i))
