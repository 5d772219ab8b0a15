"""The rollouts of a report: which of the recorded ones it contains, and what it contains of each.

A report has a size limit, and a run may record thousands of rollouts. So the report takes rollouts step by step as long as
they fit: the first step, the last, then the middle, the quarters, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from errata.records import is_solved
from errata.reports.runs import Run
from errata.reports.table import shortened

HEAD, TAIL = 1400, 600
"""Tokens kept of a longer rollout, from its beginning and from its end."""
MAX_TEXT = 6000
"""Characters kept of a prompt, a feedback or an attempt without recorded tokens."""
EVALUATION = 0.15
"""Share of the room that attempts of evaluations may take."""
_AROUND = 200
"""Characters of the teacher's prompt shown before and after what was added to it."""
_LIKELY = 0.01
"""Teacher probability from which an alternative token is shown."""
_SURE = 0.95
"""Teacher probability of the sampled token from which no alternative is kept: the page can tell it from the log-prob."""
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
        evaluations = run.eval_rollouts()
        threshold, room = run.success_threshold, budget // len(runs)

        evaluation = partial(pack_evaluation, threshold=threshold)
        tested = _fitting(evaluations, evaluation, int(EVALUATION * room), {"run": index, "split": "evaluation"})
        left = room - sum(len(embedded(row)) + 1 for row in tested)
        chosen += _fitting(rows, partial(pack, ledger=ledger, threshold=threshold), left, {"run": index})
        chosen += tested
    return chosen, recorded


def _fitting(
    rows: Sequence[Mapping[str, Any]],
    packed_row: Callable[[Mapping[str, Any]], dict[str, Any]],
    left: int,
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Packed rows of at most ``left`` bytes in all, spread over the steps, in their own order."""
    misses = 0
    kept: dict[int, dict[str, Any]] = {}
    for number in _spread([int(row["step"]) for row in rows]):
        try:
            packed = {**packed_row(rows[number]), **about}
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise ValueError(
                f"run: row {number + 1} of the rollouts of step {rows[number]['step']} is not as errata writes it "
                f"({type(error).__name__}: {error}); remove that row from the run's files"
            ) from error
        size = len(embedded(packed)) + 1
        if size <= left:
            kept[number] = packed
            left -= size
            misses = 0
        elif (misses := misses + 1) == _MISSES:
            break
    return [kept[number] for number in sorted(kept)]


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
        "signals": {
            k: _values(_kept(v), _kept(generated))
            for k, v in (row.get("signals") or {}).items()
            if len(v) == len(tokens)
        },
    }
    if row.get("turns"):
        packed["turns"] = _turns(row["turns"])
    if any(row.get("turn_feedback") or ()):
        packed["turn_feedback"] = [shortened(text, MAX_TEXT) for text in row["turn_feedback"]]
    if any(context.get("by_turn") or ()):
        packed["by_turn"] = [shortened(text, MAX_TEXT) for text in context["by_turn"]]
    if row.get("siblings"):
        packed["siblings"] = [_sibling(other, threshold) for other in row["siblings"]]
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
        packed["alternatives"] = [
            0 if choices and choices[0][0] == token and choices[0][1] >= _SURE else _likely(choices)
            for token, choices in zip(_kept(tokens), _kept(row["alternatives"]), strict=True)
        ]
    return packed


def pack_evaluation(row: Mapping[str, Any], *, threshold: float = 1.0) -> dict[str, Any]:
    """One row of ``eval_rollouts.jsonl``: the first attempt with the others as its siblings, as :func:`pack` gives them."""
    first, *others = row["attempts"]
    solved = [is_solved(attempt.get("reward"), threshold) for attempt in row["attempts"]]
    shared = {"step": row.get("step", 0), "problem_id": row.get("problem_id", ""), "prompt": row.get("prompt")}
    return pack(
        {**shared, **first, "siblings": others, "group_rate": sum(solved) / len(solved)},
        ledger=False,
        threshold=threshold,
    ) | {"tokens": [shortened(first.get("completion") or "", MAX_TEXT)], "length": first.get("length")}


def _sibling(row: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """An attempt without recorded tokens, as one text."""
    packed: dict[str, Any] = {
        "tokens": [shortened(row.get("completion") or "", MAX_TEXT)],
        "length": row.get("length"),
        "reward": row.get("reward"),
        "solved": is_solved(row.get("reward"), threshold),
        "kind": row.get("kind") or "",
        "feedback": shortened(row.get("feedback") or "", MAX_TEXT),
    }
    if row.get("turns"):
        packed["turns"] = _turns(row["turns"])
    return packed


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Of each message: its role, its sender's name, and the names of the tools that it calls."""
    return [
        [
            str(message.get("role") or "assistant"),
            str(message.get("name") or ""),
            [str((call.get("function") or call).get("name", "")) for call in message.get("tool_calls") or ()],
        ]
        for message in messages
    ]


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


def _values(values: Sequence[float | None], generated: Sequence[int]) -> Any:
    """The values with three significant digits; one number if those of the student's own tokens are the same."""
    short = [None if v is None else float(f"{v:.3g}") for v in values]
    short = [int(v) if v is not None and v == int(v) else v for v in short]
    own = [v for v, mine in zip(short, generated, strict=True) if mine]
    return own[0] if own and all(v == own[0] for v in own) else short


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
