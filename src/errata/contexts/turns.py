"""A completion of several turns as one text, for a teacher, a critic or a person to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def transcript(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the policy wrote, its tool calls and what the tools said, in the order it happened; a text is returned as it is.

    ``transcript([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 3}}}]},
    {"role": "tool", "content": "7"}, {"role": "assistant", "content": "It is 7."}])`` is three lines,
    ``add({"a": 3})``, ``-> 7`` and ``It is 7.``.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(line for message in completion for line in _lines(message))


def has_tools(completion: str | Sequence[Mapping[str, Any]]) -> bool:
    """Whether a tool was called in a completion, or another turn than the policy's own is in it."""
    if isinstance(completion, str):
        return False
    return any(m.get("tool_calls") or m.get("role") not in (None, "assistant") for m in completion)


def hindsight(
    messages: Sequence[Mapping[str, Any]], turn_feedback: Sequence[str] = (), last: str = ""
) -> tuple[str, ...]:
    """For each of the policy's turns, what became known after it: a text, the nearest first.

    That is the feedback on this turn and on later ones, what tools and users said after it, and ``last``. What the policy
    itself said later is left out.

    Args:
        messages: the completion, of any number of turns.
        turn_feedback: on the policy's turns, in their order; further texts are ignored.
        last: feedback on the whole completion.
    """
    known: list[list[str]] = []  # of each of the policy's turns, what was said about it and right after it
    for message in messages:
        if message.get("role") in (None, "assistant"):
            said = turn_feedback[len(known)] if len(known) < len(turn_feedback) else ""
            known.append([said.strip()])
        elif known:
            known[-1].append(_said(message))
    return tuple(
        "\n".join(text for texts in (*known[turn:], [last.strip()]) for text in texts if text)
        for turn in range(len(known))
    )


def _said(message: Mapping[str, Any]) -> str:
    """What another than the policy said; a tool's output with an arrow before it."""
    lines = "\n".join(_lines(message))
    return lines.removeprefix("-> ") if message.get("role") == "user" else lines


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content") or ""
    if not isinstance(content, str):  # a tool that returned a picture as well
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
    if message.get("role") not in (None, "assistant"):
        yield f"-> {content}"
        return
    if content:
        yield content
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield f"{function.get('name')}({json.dumps(function.get('arguments', {}), ensure_ascii=False)})"
