"""The last few failed attempts at each problem with the feedback they got, for teachers that are shown more than the
present feedback. Plain state, bounded, JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from errata.experience._check import problem_id_of, saved_by, whole
from errata.records import Earlier, strip_thinking


class FeedbackHistory:
    """At most ``per_problem`` failed attempts of each of at most ``max_problems`` problems, the newest.

    Attempts of the step that is going on wait apart: until a later step begins, ``earlier`` does not return them, and they
    push nothing out. So whatever the size of a group, a step's teachers see earlier steps only.

    Of attempts of one text the newest stays. Thinking is stripped for comparing, and for storing unless
    ``keep_thinking``. Beyond ``max_problems``, or ``max_characters`` of text in all, the problem that has gone longest
    without a new attempt is forgotten.
    """

    def __init__(
        self,
        per_problem: int = 4,
        *,
        keep_thinking: bool = False,
        max_problems: int = 50_000,
        max_characters: int = 200_000_000,
    ) -> None:
        self.per_problem = whole("per_problem", per_problem, least=1)
        self.keep_thinking = keep_thinking
        self.max_problems = whole("max_problems", max_problems, least=1)
        self.max_characters = whole("max_characters", max_characters, least=1)
        self._entries: dict[str, list[Earlier]] = {}  # the problem with the newest attempt last
        self._present: list[tuple[str, Earlier]] = []
        self._step = 0
        self._characters = 0

    def __len__(self) -> int:
        """Problems with at least one attempt of an earlier step."""
        return len(self._entries)

    def earlier(self, problem_id: str) -> tuple[Earlier, ...]:
        """The problem's attempts of steps before the one that is going on, oldest first."""
        return tuple(self._entries.get(problem_id_of(problem_id), ()))

    def metrics(self) -> dict[str, int]:
        """Problems and attempts held now, those of the step that is going on apart."""
        return {"problems": len(self._entries), "attempts": sum(map(len, self._entries.values()))}

    def begin(self, step: int) -> None:
        """A step begins: what was added at those before it becomes earlier. Calling it again at the same step does nothing.

        Raises ``ValueError`` if ``step`` is negative or before one that has begun.
        """
        step = whole("step", step)
        if step < self._step:
            raise ValueError(f"step: {step} comes after {self._step}; give steps in order")
        if step > self._step:
            self._step = step
            for problem_id, attempt in self._present:
                self._keep(problem_id, attempt)
            self._present = []

    def add(self, problem_id: str, text: str, feedback: str, step: int, *, leaks_answer: bool = False) -> None:
        """A failed attempt with feedback. One without, or longer than the whole history, is not stored.

        Raises ``ValueError`` if ``problem_id``, ``text`` or ``feedback`` is no string, or as ``begin`` does.
        """
        problem_id = problem_id_of(problem_id)
        for name, value in (("text", text), ("feedback", feedback)):
            if not isinstance(value, str):
                raise ValueError(f"{name}: must be a string, got {type(value).__name__}")
        self.begin(step)
        attempt = Earlier(
            text if self.keep_thinking else strip_thinking(text), feedback.strip(), bool(leaks_answer), self._step
        )
        if attempt.feedback and _characters([attempt]) <= self.max_characters:
            self._present.append((problem_id, attempt))

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; problems are a list, so that their order survives sorted keys."""
        return {
            "problems": [[name, [list(astuple(entry)) for entry in held]] for name, held in self._entries.items()],
            "present": [[name, list(astuple(entry))] for name, entry in self._present],
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the history that wrote ``state``, within this one's own bounds."""
        saved_by(state, "problems", "present", "step")
        self._entries, self._characters = {}, 0
        for name, rows in state["problems"]:
            for row in rows:
                self._keep(name, Earlier(*row))
        self._present = [(name, Earlier(*row)) for name, row in state["present"]]
        self._step = state["step"]

    def _keep(self, problem_id: str, attempt: Earlier) -> None:
        held = self._entries.pop(problem_id, [])
        self._characters -= _characters(held)
        said = strip_thinking(attempt.attempt)
        others = [entry for entry in held if strip_thinking(entry.attempt) != said]
        self._entries[problem_id] = [*others, attempt][-self.per_problem :]
        self._characters += _characters(self._entries[problem_id])
        while len(self._entries) > self.max_problems or self._characters > self.max_characters:
            self._characters -= _characters(self._entries.pop(next(iter(self._entries))))


def _characters(entries: list[Earlier]) -> int:
    return sum(len(entry.attempt) + len(entry.feedback) for entry in entries)
