"""Turning a teacher's context into a prompt that fits; all prompt text is in this package.

A template is Jinja over the last user message. It sees ``prompt`` (that message), ``solution`` (several are numbered in
one text), ``solutions`` (a list), ``feedback``, ``attempt`` (the rollout's own text) and ``earlier`` (a list of failed
attempts of earlier steps, oldest first, each with ``attempt`` and ``feedback``), and the context's own ``values`` by name.
The rendered text replaces the last user message; system and earlier turns stay as they are, and so does a last message of
the assistant, which is the beginning of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import jinja2
import jinja2.meta

from errata.records import Earlier, Messages, Prompt, Rollout, TeacherContext, fitting, strip_thinking

PRESETS = ("sdpo", "opsd", "house")
"""``sdpo``: the wording of arXiv 2601.20802 as released. ``opsd``: what arXiv 2601.18734 tells its teacher, in our words: the
solution, and not to quote it. ``house``: the compact one the house policy was trained with."""

DEFAULT = "sdpo"
"""Where nothing else is said."""

_GAP = " [...] "

Slot = tuple[str, int, str]
"""One text that may be cut: its section, its number there and, of an earlier attempt, which half."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A teacher's prompt and what became of it."""

    prompt: Messages | str
    cut: tuple[str, ...] = ()
    """Sections that were shortened, e.g. ``("earlier", "feedback")``."""
    environment: str | None = None
    """The row's environment, whose tools the prompt lists, where a run has several."""
    by_turn: tuple[Prompt, ...] = ()
    """The prompt at each of the policy's turns, where they differ; ``prompt`` is then the first of them that shows something."""
    dropped: bool = False
    """True when not even an empty context fitted: the rollout gets no teacher."""


def _source(template: str) -> str:
    if template in PRESETS:
        return (resources.files("errata.contexts") / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    if template.endswith(".jinja"):
        path = Path(template)
        if not path.is_file():
            raise ValueError(f"context_template: no file {template!r}; presets are {', '.join(PRESETS)}")
        return path.read_text(encoding="utf-8")
    if "{" not in template:
        raise ValueError(
            f"context_template: {template!r} is neither a preset ({', '.join(PRESETS)}), a .jinja file nor Jinja text"
        )
    return template


@lru_cache(maxsize=32)
def _compile(template: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and the names it uses."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    source = _source(template)
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), frozenset(names)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"context_template: line {error.lineno}: {error.message}") from error


class Renderer:
    """Renders contexts under one length budget, with one template or with one for each task.

    Args:
        template: a preset's name, a path ending in ``.jinja``, or Jinja text; or a mapping to one of these from an
            environment, a task, or what the task's name begins with before a ``/`` (``errata.records.fitting``).
        default: a template, for rows that a mapping does not name.
        max_tokens: the longest teacher prompt; ``None`` is no limit.
        count_tokens: tokens of a prompt as the policy will see it, chat template and generation prompt included.
        history: whether contexts will hold earlier attempts.
    Raises:
        ValueError: an unknown preset, a missing file or a syntax error, with its line; a template without a place for
            earlier attempts where there will be some.
    """

    def __init__(
        self,
        template: str | Mapping[str, str] = DEFAULT,
        *,
        default: str = DEFAULT,
        max_tokens: int | None = None,
        count_tokens: Callable[[Messages | str], int] | None = None,
        history: bool = False,
    ) -> None:
        if max_tokens is not None and count_tokens is None:
            raise ValueError("count_tokens: needed where max_tokens is set")
        by_task = {"": template} if isinstance(template, str) else {"": default, **template}
        self._templates: dict[str, jinja2.Template] = {}
        for task, wording in by_task.items():
            self._templates[task], names = _compile(wording)
            if history and "earlier" not in names:
                raise ValueError(
                    f"context_template: {_short(wording)} has no place for the earlier attempts that `history` shows; "
                    "add {% for try in earlier %}{{ try.attempt }} {{ try.feedback }}{% endfor %} or set history: 0"
                )
        self._max_tokens = max_tokens
        self._count = count_tokens

    def render(self, rollout: Rollout, context: TeacherContext) -> Rendered:
        """The teacher's prompt. The problem and the generation prompt are never cut; shown texts lose their middle.

        Cut are, in this order: earlier attempts, the oldest first; the attempt; the feedback; demonstrations, the last
        first. What the teacher needs most goes last.
        """
        if any(context.by_turn):
            return self._render_turns(rollout, context)
        if not context.shows_something:
            return Rendered(rollout.prompt)  # another model is given the student's own prompt
        slots, values = _slots(rollout, context), context.values
        prompt = self._fill(rollout, slots, values)
        if self._max_tokens is None or self._count is None or self._count(prompt) <= self._max_tokens:
            return Rendered(prompt)
        if self._count(self._fill(rollout, dict.fromkeys(slots, ""), values)) > self._max_tokens:
            return Rendered(rollout.prompt, dropped=True)
        cut: list[str] = []
        for slot in slots:
            if self._fill(rollout, {**slots, slot: ""}, values) == prompt:  # empty, or not in this template
                continue
            cut.append(slot[0])
            slots[slot] = self._longest_fit(rollout, slots, slot, values)
            prompt = self._fill(rollout, slots, values)
            if self._count(prompt) <= self._max_tokens:
                break
        left = bool(values) or any(text for (section, *_), text in slots.items() if section != "attempt")
        return Rendered(prompt, tuple(dict.fromkeys(cut)), dropped=not left)

    def _render_turns(self, rollout: Rollout, context: TeacherContext) -> Rendered:
        """A prompt for each turn; the student's own where nothing became known after a turn or nothing of it fits."""
        turns = [self.render(rollout, replace(context, feedback=text, by_turn=())) for text in context.by_turn]
        shown = [turn for turn in turns if turn.prompt != rollout.prompt]
        if not shown:
            return Rendered(rollout.prompt, dropped=True)
        cut = tuple(dict.fromkeys(section for turn in turns for section in turn.cut))
        return Rendered(shown[0].prompt, cut, by_turn=tuple(turn.prompt for turn in turns))

    def _longest_fit(self, rollout: Rollout, slots: dict[Slot, str], slot: Slot, values: Mapping[str, object]) -> str:
        assert self._count is not None and self._max_tokens is not None
        text = slots[slot]
        low, high = 0, len(text)  # characters kept; invariant: `low` fits or is 0
        while low < high:
            middle = (low + high + 1) // 2
            tried = self._fill(rollout, {**slots, slot: _without_middle(text, middle)}, values)
            if self._count(tried) <= self._max_tokens:
                low = middle
            else:
                high = middle - 1
        return _without_middle(text, low)

    def _fill(self, rollout: Rollout, slots: Mapping[Slot, str], values: Mapping[str, object]) -> Messages | str:
        template, sections, prompt = self._template_of(rollout), {**values, **_sections(slots)}, rollout.prompt
        if isinstance(prompt, str):
            return _rendered(template, prompt, sections)
        begun = prompt[-1:] if prompt[-1].get("role") == "assistant" else []  # of the answer, which goes on there
        prompt = prompt[: len(prompt) - len(begun)]
        last = prompt[-1] if prompt else {}
        if last.get("role") != "user":
            raise ValueError(
                f"prompt: must end with a user turn to show its teacher anything, ends with {last.get('role')!r}"
            )
        content = last["content"]
        if isinstance(content, list):  # multimodal: only the text part is rewritten
            text = "".join(part.get("text", "") for part in content if part.get("type") == "text")
            others = [part for part in content if part.get("type") != "text"]
            filled = _rendered(template, text, sections)
            return [*prompt[:-1], {**last, "content": [*others, {"type": "text", "text": filled}]}, *begun]
        return [*prompt[:-1], {**last, "content": _rendered(template, content, sections)}, *begun]

    def _template_of(self, rollout: Rollout) -> jinja2.Template:
        return self._templates[fitting(rollout.row, self._templates) or ""]


def _rendered(template: jinja2.Template, prompt: str, sections: Mapping[str, object]) -> str:
    """The filled template. Raises ``ValueError`` in one line where it fails."""
    try:
        return template.render(prompt=prompt, **sections)
    except Exception as error:  # a template is code
        known = ", ".join(["prompt", *sections])
        raise ValueError(f"context_template: {type(error).__name__}: {error}; a template sees {known}") from error


def _slots(rollout: Rollout, context: TeacherContext) -> dict[Slot, str]:
    """The shown texts in the order in which they are cut."""
    slots: dict[Slot, str] = {}
    for number, tried in enumerate(context.earlier):
        slots |= {("earlier", number, "attempt"): tried.attempt, ("earlier", number, "feedback"): tried.feedback}
    attempt = rollout.completion if context.keep_thinking else strip_thinking(rollout.completion)
    slots["attempt", 0, ""] = attempt if context.feedback else ""
    slots["feedback", 0, ""] = context.feedback
    for number, text in reversed(list(enumerate(context.solutions))):
        slots["more_solutions" if number else "solution", number, ""] = text
    return slots


def _sections(slots: Mapping[Slot, str]) -> dict[str, object]:
    """What a template sees. Of an earlier attempt or a demonstration of which nothing is left nothing is seen."""
    numbers = sorted({number for section, number, _ in slots if section == "earlier"})
    earlier = [Earlier(slots["earlier", n, "attempt"], slots["earlier", n, "feedback"]) for n in numbers]
    found = {number: text for (section, number, _), text in slots.items() if section in ("solution", "more_solutions")}
    solutions = [found[number] for number in sorted(found) if found[number]]
    return {
        "solutions": solutions,
        "solution": solutions[0] if len(solutions) == 1 else _numbered(solutions),
        "earlier": [tried for tried in earlier if tried.attempt or tried.feedback],
        "attempt": slots["attempt", 0, ""],
        "feedback": slots["feedback", 0, ""],
    }


def _numbered(texts: list[str]) -> str:
    return "\n\n".join(f"Solution {number}:\n{text}" for number, text in enumerate(texts, start=1))


def _short(template: str) -> str:
    return repr(template if len(template) <= 40 else template[:40] + "...")


def _without_middle(text: str, keep: int) -> str:
    if keep >= len(text):
        return text
    if keep <= 0:
        return ""
    head = (keep + 1) // 2
    return text[:head] + _GAP + (text[len(text) - (keep - head) :] if keep > head else "")
