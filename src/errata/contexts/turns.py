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
