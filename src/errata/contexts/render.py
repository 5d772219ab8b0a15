"""Turning a teacher's context into a prompt that fits, the only home of prompt text.

A template is Jinja over the last user message: ``prompt`` (that message), ``solution``, ``feedback``, ``attempt`` (the
rollout's own text). The rendered text replaces the last user message; system and earlier turns stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import jinja2

from errata.records import Messages, Rollout, TeacherContext, strip_thinking

PRESETS = ("sdpo", "house")
"""``sdpo``: the wording of arXiv 2601.20802 as released. ``house``: the compact one the house policy was trained with."""

_SECTIONS = ("attempt", "feedback", "solution")  # cut in this order: what the teacher needs most goes last
_GAP = " [...] "


@dataclass(frozen=True, slots=True)
class Rendered:
    """A teacher's prompt and what became of it."""

    prompt: Messages | str
    cut: tuple[str, ...] = ()
    """Sections that were shortened, e.g. ``("feedback",)``."""
    dropped: bool = False
    """True when not even an empty context fitted: the rollout gets no teacher."""


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    if template in PRESETS:
        template = (resources.files("errata.contexts") / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    elif template.endswith(".jinja"):
        path = Path(template)
        if not path.is_file():
            raise ValueError(f"context_template: no file {template!r}; presets are {', '.join(PRESETS)}")
        template = path.read_text(encoding="utf-8")
    elif "{" not in template:
        raise ValueError(
            f"context_template: {template!r} is neither a preset ({', '.join(PRESETS)}), a .jinja file nor Jinja text"
        )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"context_template: line {error.lineno}: {error.message}") from error


class Renderer:
    """Renders contexts with one template under one length budget.

    Args:
        template: a preset's name, a path ending in ``.jinja``, or Jinja text.
        max_tokens: the longest teacher prompt; ``None`` is no limit.
        count_tokens: tokens of a prompt as the policy will see it, chat template and generation prompt included.
    Raises:
        ValueError: an unknown preset, a missing file or a syntax error, with its line.
    """

    def __init__(
        self,
        template: str = "sdpo",
        *,
        max_tokens: int | None = None,
        count_tokens: Callable[[Messages | str], int] | None = None,
    ) -> None:
        if max_tokens is not None and count_tokens is None:
            raise ValueError("count_tokens: needed where max_tokens is set")
        self._template = _compile(template)
        self._max_tokens = max_tokens
        self._count = count_tokens

    def render(self, rollout: Rollout, context: TeacherContext) -> Rendered:
        """The teacher's prompt. The problem and the generation prompt are never cut; shown texts lose their middle."""
        if not (context.solution or context.feedback):
            return Rendered(rollout.prompt)  # an expert of its own is asked what the student was asked
        sections = {
            "attempt": strip_thinking(rollout.completion) if context.feedback else "",
            "feedback": context.feedback,
            "solution": context.solution,
        }
        prompt = self._fill(rollout.prompt, sections)
        if self._max_tokens is None or self._count is None or self._count(prompt) <= self._max_tokens:
            return Rendered(prompt)
        if self._count(self._fill(rollout.prompt, dict.fromkeys(_SECTIONS, ""))) > self._max_tokens:
            return Rendered(rollout.prompt, dropped=True)
        cut: list[str] = []
        for name in _SECTIONS:
            if self._fill(rollout.prompt, {**sections, name: ""}) == prompt:  # empty, or not in this template
                continue
            cut.append(name)
            sections[name] = self._longest_fit(rollout.prompt, sections, name)
            prompt = self._fill(rollout.prompt, sections)
            if self._count(prompt) <= self._max_tokens:
                break
        # A context of which nothing is left informs nobody.
        return Rendered(prompt, tuple(cut), dropped=not (sections["solution"] or sections["feedback"]))

    def _longest_fit(self, prompt: Messages | str, sections: dict[str, str], name: str) -> str:
        assert self._count is not None and self._max_tokens is not None
        text = sections[name]
        low, high = 0, len(text)  # characters kept; invariant: `low` fits or is 0
        while low < high:
            middle = (low + high + 1) // 2
            if self._count(self._fill(prompt, {**sections, name: _without_middle(text, middle)})) <= self._max_tokens:
                low = middle
            else:
                high = middle - 1
        return _without_middle(text, low)

    def _fill(self, prompt: Messages | str, sections: dict[str, str]) -> Messages | str:
        if isinstance(prompt, str):
            return self._template.render(prompt=prompt, **sections)
        last = prompt[-1]
        if last.get("role") != "user":
            raise ValueError(
                f"prompt: must end with a user turn to show its teacher anything, ends with {last.get('role')!r}"
            )
        content = last["content"]
        if isinstance(content, list):  # multimodal: only the text part is rewritten
            text = "".join(part.get("text", "") for part in content if part.get("type") == "text")
            others = [part for part in content if part.get("type") != "text"]
            filled = self._template.render(prompt=text, **sections)
            return [*prompt[:-1], {**last, "content": [*others, {"type": "text", "text": filled}]}]
        return [*prompt[:-1], {**last, "content": self._template.render(prompt=content, **sections)}]


def _without_middle(text: str, keep: int) -> str:
    if keep >= len(text):
        return text
    if keep <= 0:
        return ""
    head = (keep + 1) // 2
    return text[:head] + _GAP + (text[len(text) - (keep - head) :] if keep > head else "")
