"""Tool calls written as text, checked against the answer and against the tools that the prompt documents.

An attempt is right if its calls are the answer's, each with its own inputs, in any order. The SDPO release grades
ToolAlpaca's rows by less, the multiset of actions and all inputs merged into one object: ``grading="sdpo"``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from errata.feedback.custom import answer_text
from errata.feedback.tool_text import Argument, Call, gold_calls, json_type, read_calls, read_tools, written
from errata.records import Verdict

__all__ = ["ToolCallVerifier"]

_NO_ACTION = (
    "No action could be read. Write 'Action:' and a tool's name, "
    "then on a line of its own 'Action Input:' and a JSON object."
)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


_GRADINGS = ("calls", "sdpo")
_MOST = 8  # remarks on one attempt


class ToolCallVerifier:
    """Judges written tool calls as a TRL reward function does: ``verifier(prompts=..., completions=..., answer=...)``.

    The tools are read from the prompt, the answer from the column ``answer`` (see ``tool_text.gold_calls``). What an
    answer itself violates of the documentation is not held against an attempt.

    Args:
        show_answer: append the right calls to the feedback on a wrong attempt, which then leaks the answer.
        grading: ``"calls"`` compares call by call; ``"sdpo"`` as the SDPO release does, so that an argument may stand
            with another call and only the last of two calls of one tool counts. ``info["same_calls"]`` tells of both
            whether every single call agrees.
    Raises:
        ValueError: an unknown ``grading``, or a row whose answer cannot be read.
    """

    def __init__(self, *, show_answer: bool = False, grading: str = "calls") -> None:
        if grading not in _GRADINGS:
            raise ValueError(f"grading: {grading!r} is none of {', '.join(_GRADINGS)}")
        self.show_answer, self.grading = show_answer, grading
        self.__name__ = "tool_call"

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "answer" not in columns:
            raise ValueError("columns: the tool-call verifier reads the column 'answer', and the data has none")
        gold = [_gold(answer, row) for row, answer in enumerate(columns["answer"])]
        rows = zip(prompts, completions, gold, strict=True)
        return [self._judge(_prompt_text(p), answer_text(c), g) for p, c, g in rows]

    def _judge(self, prompt: str, text: str, gold: tuple[Call, ...]) -> Verdict:
        tools = read_tools(prompt)
        reading = read_calls(text, known=tools)
        needed = tuple(c for c in gold if not c.optional)
        same_calls = _same_calls(reading.calls, gold)
        right = same_calls if self.grading == "calls" else _merged_agrees(reading.calls, gold)
        info = {
            "actions": [c.name for c in reading.calls],
            "same_calls": same_calls,
            "strict_format": not (reading.broken or reading.sloppy),
        }
        if right and not reading.broken:
            return Verdict(1.0, "\n".join(reading.sloppy), kind="format" if reading.sloppy else "", info=info)
        said = [*reading.broken, *reading.sloppy] if reading.calls or reading.broken else [_NO_ACTION]
        if reading.calls:
            excused = set(_complaints(gold, tools))
            said += [c for c in dict.fromkeys(_complaints(reading.calls, tools)) if c not in excused]
            if not reading.broken:
                said += _differences(reading.calls, needed, gold, known=tools)
        if len(said) > _MOST:
            said = [*said[:_MOST], f"... and {len(said) - _MOST} more."]
        if self.show_answer:
            said.append("The right calls are:\n" + written(needed))
        kind = "tool" if reading.calls else "format"
        return Verdict(0.0, "\n".join(said), kind=kind, leaks_answer=self.show_answer, info=info)


def _gold(answer: Any, row: int) -> tuple[Call, ...]:
    try:
        return gold_calls(answer)
    except ValueError as error:
        raise ValueError(f"{error} (row {row} of the batch)") from None


def _complaints(calls: Iterable[Call], tools: Mapping[str, Mapping[str, Argument]]) -> Iterator[str]:
    """What the calls violate of the tools' documentation; nothing if it could not be read."""
    for call in calls if tools else ():
        if call.name not in tools:
            yield f"There is no tool {call.name!r}; {_instead(call.name, tools, 'the tools are')}"
            continue
        arguments = tools[call.name]
        for key, argument in arguments.items():
            if argument.required and key not in call.arguments:
                yield f"{call.name}: the required argument {key!r} is missing."
        for key, value in call.arguments.items():
            if key in arguments:
                yield from _misfit(f"{call.name}: {key!r}", value, arguments[key])
            else:
                yield f"{call.name}: there is no argument {key!r}; {_instead(key, arguments, 'it takes')}"


def _misfit(what: str, value: Any, argument: Argument) -> Iterator[str]:
    kinds = _TYPES.get(argument.type)
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        shown = "null" if value is None else f"the {json_type(value)} {json.dumps(value, ensure_ascii=False)[:60]}"
        yield f"{what} must be of type {argument.type}, not {shown}."
    elif argument.one_of and isinstance(value, str) and value and value not in argument.one_of:
        yield f"{what} must be one of {', '.join(argument.one_of)}, not {value!r}."


def _instead(name: str, known: Iterable[str], these: str) -> str:
    listed = list(known)
    if len([one for one in listed if re.search(rf"\b{re.escape(one)}\b", name)]) > 1:
        return "name only one."
    if near := difflib.get_close_matches(name, listed, n=1):
        return f"did you mean {near[0]!r}?"
    return f"{these} {', '.join(listed[:12]) or 'none'}{', ...' if len(listed) > 12 else ''}."


def _differences(
    calls: Sequence[Call], needed: Sequence[Call], gold: Sequence[Call], *, known: Iterable[str]
) -> Iterator[str]:
    """How the calls differ from the answer's, without saying what the answer's are."""
    made, wanted = Counter(c.name for c in calls), Counter(c.name for c in needed)
    if not (wanted <= made <= Counter(c.name for c in gold)):
        for name in made - wanted:
            if name in wanted:
                yield f"{name!r} is called too often."
            elif name in known or not known:
                yield f"{name!r} is not a tool that this question needs."
        if len(calls) != len(needed):
            yield f"The question needs {len(needed)} call{'s' * (len(needed) != 1)}; you made {len(calls)}."
        return
    left = list(gold)
    wrong: list[tuple[int, Call]] = []
    for number, call in enumerate(calls, start=1):
        at = next((i for i, one in enumerate(left) if _same_call(call, one)), None)
        if at is None:
            wrong.append((number, call))
        else:
            left.pop(at)
    for number, call in wrong:
        rivals = [one for one in left if one.name == call.name]
        right = min(rivals, key=lambda one: len(_wrong_arguments(call.arguments, one.arguments)))
        left.remove(right)
        which = "The arguments" if len(calls) == 1 else f"Call {number}, {call.name!r}: its arguments"
        problems = _wrong_arguments(call.arguments, right.arguments)
        more = [f"{len(problems) - _MOST} more"] if len(problems) > _MOST else []
        yield f"{which} are not what the question asks for: {', '.join(problems[:_MOST] + more)}."


def _wrong_arguments(given: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return [
        *(f"{key!r} is missing" for key in right if key not in given),
        *(f"{key[:60]!r} is not asked for" for key in given if key not in right),
        *(f"{key!r} has a wrong value" for key in given if key in right and not _same(given[key], right[key])),
    ]


def _same_call(a: Call, b: Call) -> bool:
    return a.name == b.name and _same(a.arguments, b.arguments)


def _same_calls(calls: Sequence[Call], gold: Sequence[Call]) -> bool:
    """Whether the calls are the answer's, each with its arguments, in any order; optional ones may be left out."""
    left = sorted(gold, key=lambda call: call.optional)
    for call in calls:
        at = next((i for i, one in enumerate(left) if _same_call(call, one)), None)
        if at is None:
            return False
        left.pop(at)
    return all(call.optional for call in left)


def _merged_agrees(calls: Sequence[Call], gold: Sequence[Call]) -> bool:
    """The SDPO release's comparison: the actions as a multiset, all inputs in one object; optional calls all or none."""
    return any(
        Counter(c.name for c in calls) == Counter(c.name for c in wanted) and _same(_merged(calls), _merged(wanted))
        for wanted in (gold, [c for c in gold if not c.optional])
    )


def _merged(calls: Iterable[Call]) -> dict[str, Any]:
    return {key: value for call in calls for key, value in call.arguments.items()}


def _same(a: Any, b: Any) -> bool:
    """JSON equality: 1 is 1.0 but not true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(m["content"] for m in prompt if isinstance(m.get("content"), str))
