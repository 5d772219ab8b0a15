"""The records that every package shares: rollouts, verdicts, groups and teacher contexts.

Plain frozen dataclasses of the standard library, so that any package may import them at no cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]
"""A chat: ``[{"role": "user", "content": "3+4="}]``."""
Prompt = Messages | str
"""What is asked: a chat, or a text to continue."""
Row = Mapping[str, Any]
"""A row of a data set, or of a run's JSON lines: values by column name."""
State = dict[str, Any]
"""The saved state of an object, JSON-serialisable."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one rollout: a score, and any feedback beyond it.

    ``Verdict(0.0, "0b*4=3 not 0", kind="trace")``
    """

    score: float | None
    """Reward, larger is better, 1.0 for a solved problem. ``None``: not judged (the verifier failed), left out."""
    feedback: str = ""
    """Anything said beyond the score, as text for the teacher. Empty: nothing."""
    kind: str = ""
    """What sort of feedback: ``trace``, ``correction``, ``tests``, ``format``, ``critique``, ... Empty: none.
    ``error``: the verifier failed."""
    leaks_answer: bool = False
    """Whether the feedback contains the answer itself."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping in the run directory, JSON-serialisable: ``{"chosen": "B"}``."""
    turn_feedback: tuple[str, ...] = ()
    """What is said about each of the policy's turns, in their order; an empty text: nothing. May be shorter than the turns."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion that the student sampled for one problem, with its verdict."""

    index: int
    """Position in the generation batch, over all processes: ``0``."""
    problem_id: str
    """The task's stable name of the problem: ``"rulebook/new-rule/train/17"``."""
    prompt: Messages | str
    """What the student was asked."""
    completion: str
    """The sampled text without special tokens: ``"7a+3=0b*4=3"``; of several turns the transcript."""
    verdict: Verdict
    """Its score and feedback."""
    length: int = 0
    """Tokens of the completion that the student generated."""
    reference: str | None = None
    """The data set's own solution, if it has one."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns of the data set's row but the prompt."""
    turns: tuple[Mapping[str, Any], ...] = ()
    """The completion's messages where tools were called: what the policy said, its calls and what the tools answered."""
    entropy: float | None = None
    """Mean entropy of the student over the completion's tokens in nats, where a method asks for it before contexts are chosen."""

    @property
    def reward(self) -> float | None:
        """The verdict's score; ``None`` where the rollout was not judged."""
        return self.verdict.score

    def solved(self, threshold: float = 1.0) -> bool:
        """Whether the reward reaches ``threshold``; a rollout that was not judged is not solved."""
        return is_solved(self.reward, threshold)


@dataclass(frozen=True, slots=True)
class Group:
    """All attempts at one problem in one step, in the order they were sampled."""

    problem_id: str
    rollouts: tuple[Rollout, ...]

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self.rollouts)

    def __len__(self) -> int:
        return len(self.rollouts)

    def successes(self, threshold: float = 1.0, *, other_than: Rollout | None = None) -> list[Rollout]:
        """Rollouts with reward at least ``threshold``; ``other_than`` itself and exact copies of its text are left out."""
        return [
            r
            for r in self.rollouts
            if r.solved(threshold)
            and (other_than is None or (r.index != other_than.index and r.completion != other_than.completion))
        ]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A failed attempt at the same problem from an earlier step, with its feedback.

    ``Earlier("7a+3=1b*4=4", "7a+3=0 not 1", step=12)``
    """

    attempt: str
    feedback: str
    leaks_answer: bool = False
    """Whether the feedback contains the answer."""
    step: int = 0
    """The optimizer step it was sampled at."""


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What one rollout's teacher is shown, and why.

    ``TeacherContext("sibling", "rollout 3 of its group, reward 1", text="7a+3=0b*4=3")``
    """

    kind: str
    """``sibling``, ``feedback``, ``hindsight``, ``reference``, ``buffer``, ``expert`` or ``none``; or a source of your own."""
    why: str = ""
    """One line for the run directory."""
    solution: str = ""
    """A shown solution: a sibling's or stored success or the reference."""
    more_solutions: tuple[str, ...] = ()
    """Further ones, best first, where the method shows several demonstrations."""
    feedback: str = ""
    """Shown feedback on the rollout's own attempt."""
    earlier: tuple[Earlier, ...] = ()
    """Failed attempts of earlier steps with their feedback, oldest first."""
    keep_thinking: bool = False
    """Whether the rollout's own attempt is shown with its thinking."""
    leaks_answer: bool = False
    """Whether what is shown contains the answer."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the prompt template, by name, such as columns of the row: ``{"hint": "carry the one"}``."""
    by_turn: tuple[str, ...] = ()
    """What is shown as feedback at each of the policy's turns, instead of ``feedback``: what became known after that turn."""
    use_teacher: bool = True
    """Whether the method uses this rollout's teacher; ``False`` saves the teacher's forward pass."""

    @property
    def is_informative(self) -> bool:
        """Whether the teacher knows anything the student does not: from what it is shown, or as another model."""
        return self.shows_something or self.kind == "expert"

    @property
    def shows_something(self) -> bool:
        """Whether the teacher's prompt holds more than the student's."""
        return bool(self.solutions or self.feedback or self.earlier or self.values or any(self.by_turn))

    @property
    def solutions(self) -> tuple[str, ...]:
        """All shown solutions, best first."""
        return tuple(text for text in (self.solution, *self.more_solutions) if text)


def fitting(row: Row, names: Iterable[str]) -> str | None:
    """The name that fits a row: its environment, else its task or the longest beginning of the task before a ``/``.

    ``fitting({"task": "rulebook/new-rule"}, ["rulebook", "math"])`` is ``"rulebook"``. ``None`` where none fits.
    """
    known, task = set(names), str(row.get("task") or "")
    if row.get("environment") in known:
        return str(row["environment"])
    while task:
        if task in known:
            return task
        task = task.rpartition("/")[0]
    return None


def is_solved(score: float | None, threshold: float = 1.0) -> bool:
    """The one meaning of "solved": a score that was given and is at least ``threshold``."""
    return score is not None and score >= threshold


def strip_thinking(text: str) -> str:
    """``text`` without ``<think>...</think>``; also where the prompt opened the thinking or the length limit cut it."""
    if "think>" not in text:
        return text
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def groups_of(rollouts: Iterable[Rollout], size: int) -> list[Group]:
    """Consecutive rollouts as groups of ``size``.

    Raises ``ValueError`` if the problems of a group differ or one is incomplete.
    """
    items = list(rollouts)
    if size < 1 or len(items) % size:
        raise ValueError(f"size: {len(items)} rollouts do not form groups of {size}")
    groups = []
    for start in range(0, len(items), size):
        members = tuple(items[start : start + size])
        if len({m.problem_id for m in members}) != 1:
            raise ValueError(f"rollouts {start}..{start + size - 1} are one group but name several problem_ids")
        groups.append(Group(members[0].problem_id, members))
    return groups
