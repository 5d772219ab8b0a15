"""Reading tool calls that are written as text, and the tools a prompt documents, in ToolAlpaca's format.

A call is a line ``Action: name`` and then ``Action Input:`` with a JSON object, which may go on over lines. Markers are
read in any case, numbered (``Action 1:``), with an underscore, a full-width colon or no-break spaces.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Argument", "Call", "Reading", "gold_calls", "json_type", "read_calls", "read_tools", "written"]

_GAP = "[ \t\u00a0\u202f\u200b\ufeff]"  # a space, no-break or of no width
_LEAD = rf"^(?:{_GAP}|[>*#-]|\d+[.)])*"
_COLON = rf"[*]*{_GAP}*[:：][*]*"
_INPUT = rf"(?:{_GAP}+|_)?Input"
_MARKER = re.compile(
    rf"{_LEAD}Action(?P<input>{_INPUT})?(?:{_GAP}*\d+)?{_COLON}(?:{_GAP})*", re.MULTILINE | re.IGNORECASE
)
_INPUT_BEHIND = re.compile(rf"(?:{_GAP}|[,;.])+Action{_INPUT}(?:{_GAP}*\d+)?{_COLON}", re.IGNORECASE)
_TURN = re.compile(
    rf"{_LEAD}(?:Action(?:{_INPUT})?(?:{_GAP}*\d+)?|Thought|Observation|Final{_GAP}Answer){_COLON}",
    re.MULTILINE | re.IGNORECASE,
)
_EDGES = " \t\r\n`\"'*.,;\u00a0\u202f\u200b\ufeff"
_OPTIONAL = "[Optional]"
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Call:
    """One action: ``Call("getWeather", {"city": "Oslo"})``."""

    name: str
    arguments: Mapping[str, Any]
    optional: bool = False
    """Of an answer: the call may be left out (``[Optional]`` before its name)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The calls found in a text, and what was wrong with how they were written."""

    calls: tuple[Call, ...]
    broken: tuple[str, ...] = ()
    """Calls that could not be read."""
    sloppy: tuple[str, ...] = ()
    """Deviations that could be read all the same."""


@dataclass(frozen=True, slots=True)
class Argument:
    """What the prompt says of a tool's argument: ``Argument("integer", required=True)``."""

    type: str
    required: bool = False
    one_of: tuple[str, ...] = ()


def read_calls(text: str, known: Iterable[str] = ()) -> Reading:
    """Reads every ``Action:`` with its ``Action Input:`` in order; inputs are parsed as JSON wherever they end.

    ``known`` are the tools' names: where one is said within words ("I will use the openingHours tool"), it is the name.
    """
    text = text.replace("\r\n", "\n")
    calls: list[Call] = []
    broken: list[str] = []
    sloppy: list[str] = []
    position, name = 0, None
    names = tuple(known)
    while marker := _MARKER.search(text, position):
        position = marker.end()
        if not marker["input"]:
            if name is not None:
                broken.append(f"The action {name!r} has no 'Action Input:' line.")
            name, position, note = _read_name(text, position, names)
            if note:
                sloppy.append(note)
            behind = _INPUT_BEHIND.match(text, position)
            if behind is None:
                continue
            position = behind.end()
        if name == "":
            broken.append("An 'Action:' line names no tool.")
            name = None
            continue
        if name is None:
            broken.append("An 'Action Input:' has no 'Action:' line before it.")
            continue
        try:
            arguments, position, notes = _read_input(text, position)
            calls.append(Call(name, arguments))
            sloppy += [f"The input of {name!r} {note}." for note in notes]
        except ValueError as error:
            broken.append(f"The input of {name!r} is {error}.")
        name = None
    if name is not None:
        broken.append(f"The action {name!r} has no 'Action Input:' line.")
    return Reading(tuple(calls), tuple(broken), tuple(sloppy))


def _read_name(text: str, start: int, known: Sequence[str]) -> tuple[str, int, str]:
    """The tool's name that begins at ``start`` or on the next line, the position behind it, and a note if it is in words."""
    if not text[start:].partition("\n")[0].strip(_EDGES):
        below = re.compile(rf"[^\S\n]*\n(?:\s|{_GAP})*(?=\S)").match(text, start)
        if below is not None and not _TURN.match(text, text.rindex("\n", 0, below.end()) + 1):
            start = below.end()
    line = text[start:].partition("\n")[0]
    if behind := _INPUT_BEHIND.search(line):
        line = line[: behind.start()]
    end = start + len(line)
    name = line.strip(_EDGES).removesuffix("()").strip(_EDGES)
    if name in known or not re.search(r"\s", name):
        return _shown(name), end, ""
    said = [tool for tool in known if re.search(rf"(?<![\w.-]){re.escape(tool)}(?![\w-]|\.\w)", name)]
    denied = re.search(r"\b(?:not|instead|no|without|don't|first|then)\b", name, re.IGNORECASE)
    if len(said) == 1 and not denied:
        return said[0], end, f"Write the tool's name alone after 'Action:', not {_shown(name)!r}."
    return _shown(name), end, ""


def _shown(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _read_input(text: str, start: int) -> tuple[dict[str, Any], int, list[str]]:
    """The JSON object that begins at ``start``, its end, and notes. Raises ``ValueError`` saying what is there."""
    begin = re.compile(rf"(?:\s|{_GAP})*(?:(?:`{{1,3}}|~~~)(?:\w*(?=[\s{{])){{0,1}}(?:\s|{_GAP})*)?").match(text, start)
    assert begin is not None
    # No JSON string holds a line break, so no line that begins a turn can be inside the input.
    following = _TURN.search(text, start)
    chunk = _plain_spaces(text[begin.end() : following.start() if following else len(text)]).rstrip()
    if not chunk:
        return {}, start, ["is empty; write {} for no arguments"]
    notes: list[str] = []
    value, end = _decode(chunk, notes)
    if rest := chunk[end:].partition("\n")[0].strip(_EDGES.replace("'", "")):
        notes.append(f"is followed by {rest[:40]!r}")
    if isinstance(value, str):
        try:
            value, _ = _decode(value, [])
        except ValueError:
            raise ValueError("a JSON string, not an object") from None
        notes.append("is JSON inside a string")
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {json_type(value)}, not an object")
    return value, begin.end() + end, notes


def _plain_spaces(text: str) -> str:
    """No-break spaces between JSON's tokens as spaces; those in its texts stay."""
    return re.sub(rf'"(?:\\.|[^"\\])*"|{_GAP}', lambda m: m[0] if len(m[0]) > 1 else " ", text)


def _decode(text: str, notes: list[str]) -> tuple[Any, int]:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        notes.extend(f"gives {key!r} twice" for key in twice)
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"not valid JSON: {constant} is no JSON value")

    try:
        return json.JSONDecoder(object_pairs_hook=members, parse_constant=refuse).raw_decode(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Invalid control character"):
            where = f"at line {error.lineno}, column {error.colno}"
            raise ValueError(f"not valid JSON: a line break or tab inside a string {where}; write \\n or \\t") from None
        near = text[error.pos :].partition("\n")[0][:20].strip()
        where = f"at line {error.lineno}, column {error.colno}" + (f", near {near!r}" if near else ", where it ends")
        raise ValueError(f"not valid JSON: {error.msg.removesuffix(' at')} {where}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        if "digits" not in str(error):
            raise
        raise ValueError("not valid JSON: a number has too many digits") from None


def read_tools(prompt: str) -> dict[str, dict[str, Argument]]:
    """The tools a prompt documents, each with its arguments; a tool whose parameters are not JSON has none listed."""
    tools: dict[str, dict[str, Argument]] = {}
    name = None
    for line in prompt.partition("Documentation:")[2].splitlines():
        head = re.match(r"([A-Za-z_][\w.-]*):", line)
        if line.startswith("Parameters:") and name is not None:
            tools[name] = _arguments(line.removeprefix("Parameters:"))
            name = None
        elif line.startswith(" - "):
            name = None
        elif head and head[1] not in ("Output", "Parameters") and name is None:
            name = head[1]
    return tools


def _arguments(text: str) -> dict[str, Argument]:
    try:
        parameters = json.loads(text)
    except ValueError:
        return {}
    return {k: _argument(v) for k, v in parameters.items()} if isinstance(parameters, dict) else {}


def _argument(description: Any) -> Argument:
    text = description if isinstance(description, str) else ""
    required = text.startswith("Required")
    text = re.sub(r"^Required\.?\s*", "", text)
    type_ = re.match(r"\w*", text)
    one_of = re.search(r"\bOne of: \[([^\]]*)\]", text)
    values = tuple(v.strip() for v in one_of[1].split(",")) if one_of else ()
    return Argument(type_[0].lower() if type_ else "", required, values)


def gold_calls(answer: Any) -> tuple[Call, ...]:
    """The calls of a row's ``answer``, a list of ``{"Action": name, "Action_Input": object or its JSON text}`` or its JSON.

    Raises ``ValueError`` saying what is wrong with it.
    """
    try:
        items = json.loads(answer) if isinstance(answer, str) else answer
    except ValueError as error:
        raise ValueError(f"answer: not valid JSON: {error}") from None
    if not isinstance(items, list) or not items:
        raise ValueError("answer: must be a non-empty JSON list of calls")
    calls = []
    for number, item in enumerate(items, start=1):
        name = item.get("Action") if isinstance(item, dict) else None
        arguments = item.get("Action_Input") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"answer: call {number} has no 'Action' with a tool's name")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise ValueError(f"answer: call {number}: 'Action_Input' is not valid JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"answer: call {number}: 'Action_Input' must be a JSON object")
        calls.append(Call(name.removeprefix(_OPTIONAL).strip(), arguments, optional=name.startswith(_OPTIONAL)))
    return tuple(calls)


def written(calls: Iterable[Call]) -> str:
    """Calls in the format the prompt asks for."""
    return "\n".join(f"Action: {c.name}\nAction Input: {json.dumps(c.arguments, ensure_ascii=False)}" for c in calls)


def json_type(value: Any) -> str:
    """JSON's own name for a value's type."""
    names = {"str": "string", "int": "number", "float": "number", "bool": "boolean", "dict": "object", "list": "array"}
    return names.get(type(value).__name__, "null")
