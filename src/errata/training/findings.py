"""What a preflight found, and what follows from it: which methods have something to learn from. Pure.

``Findings`` holds accuracies by problem and by context; ``lines`` are the table, ``verdicts`` the conclusions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Literal

from errata.methods import Method, TeacherMethod

KINDS = {
    "sibling": "a right attempt at the same problem",
    "feedback": "the verifier's feedback on its attempt",
    "reference": "the reference",
    "both": "the reference and the feedback",
    "correction": "an expert's correction of its attempt",
    "critique": "a model's critique of its attempt",
}
"""Contexts that are tried, and what the teacher is shown in each. ``own``: the method's own choice."""
LEAST = 8
"""Pairs of tokens below which their shares say nothing."""

Answer = Literal["yes", "no", "unclear"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """At states where a wrong attempt parts from a right answer: what the teacher does to the two tokens."""

    n: int = 0
    raises: int = 0
    """How often the teacher gives the right token more probability than the student does."""
    lowers: int = 0
    """How often it gives the wrong token less."""

    @property
    def help(self) -> bool:
        """Whether both shares are above a half by more than two standard errors, of at least ``LEAST`` pairs."""
        return self.n >= LEAST and min(self.raises, self.lowers) > self.n / 2 + self.n**0.5

    @property
    def may_help(self) -> bool:
        """Whether both shares are above a half, of at least ``LEAST`` pairs."""
        return self.n >= LEAST and min(self.raises, self.lowers) > self.n / 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: shares of right answers."""

    plain: float
    """The policy's, without a context."""
    mixed: bool
    """Whether its attempts were both right and wrong."""
    shown: Mapping[str, float] = field(default_factory=dict)
    """The teacher's, in each kind of context that there was for this problem."""
    has_reference: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """Of all problems that were tried."""

    problems: Sequence[Problem]
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    """By kind of context."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: one kind of context."""

    kind: str
    n: int
    """Problems that have it."""
    student: float
    """The policy's accuracy on these problems, without it."""
    teacher: float
    lead: float
    """``teacher - student``."""
    error: float | None
    """Standard error of the lead over problems; ``None`` of one problem."""
    pairs: Pairs

    @property
    def answer(self) -> Answer:
        """Whether such a teacher knows more than the student: by its answers, or by what it does to single tokens."""
        if (self.error is not None and self.lead > max(2 * self.error, 0)) or self.pairs.help:
            return "yes"
        # Not better on average, and better on few problems if on any. Its tokens may say otherwise where no answer is right.
        return "no" if self.lead <= 0 and self.n >= LEAST and not self.pairs.may_help else "unclear"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Whether a method has something to learn from here."""

    method: str
    answer: Answer
    why: str


def line(kind: str, chosen: Sequence[tuple[float, float]], pairs: Pairs) -> Line | None:
    """The row of (student's, teacher's) shares of each problem; ``None`` where there is no problem."""
    if not chosen:
        return None
    leads = [teacher - student for student, teacher in chosen]
    error = stdev(leads) / len(leads) ** 0.5 if len(leads) > 1 else None
    student, teacher = (mean(values) for values in zip(*chosen, strict=True))
    return Line(kind, len(chosen), student, teacher, teacher - student, error, pairs)


def lines(found: Findings) -> list[Line]:
    """The table: one line for each kind of context that some problem had."""
    rows = []
    for kind in (*KINDS, "own"):
        chosen = [(p.plain, p.shown[kind]) for p in found.problems if kind in p.shown]
        row = line(kind, chosen, found.pairs.get(kind, Pairs()))
        rows += [] if row is None else [row]
    return rows


def verdicts(found: Findings, methods: Mapping[str, Method], own: str | None = None) -> list[Conclusion]:
    """One conclusion for each method.

    Args:
        methods: by name, with the settings they would have.
        own: the name of the method whose contexts ``own`` in the findings are.
    """
    return [_conclusion(name, method, found, name == own) for name, method in methods.items()]


def _conclusion(name: str, method: Method, found: Findings, own: bool) -> Conclusion:
    n = len(found.problems)
    if method.learns_from == "reference":
        known = sum(p.has_reference for p in found.problems)
        return Conclusion(name, "yes" if known else "no", f"{known} of {n} problems have a reference")
    mixed = sum(p.mixed for p in found.problems)
    by_reward = f"{mixed} of {n} problems have right and wrong attempts"
    if not isinstance(method, TeacherMethod):
        return Conclusion(name, "yes" if mixed else "no", by_reward)
    choose: Callable[[Problem], str | None] = (
        (lambda p: "own" if "own" in p.shown else None) if own else _chooser(method)
    )
    kinds = [choose(p) for p in found.problems]
    chosen = [(p.plain, p.shown[kind]) for p, kind in zip(found.problems, kinds, strict=True) if kind is not None]
    most = max(set(kinds) - {None}, key=kinds.count, default=None)
    row = line(most or "", chosen, found.pairs.get(most or "", Pairs()))
    if row is None:
        return Conclusion(name, "no", "there is nothing its teacher could be shown")
    why = f"its teacher solves {row.teacher:.3f}, the student {row.student:.3f} ({row.n} problems)"
    if row.pairs.n:
        p = row.pairs
        why += f"; it raises the right token in {p.raises} and lowers the wrong one in {p.lowers} of {p.n} places"
    return Conclusion(name, row.answer, why)


def _chooser(method: TeacherMethod) -> Callable[[Problem], str | None]:
    """Which of the tried contexts a method's teacher would be shown: its first source that the problem has."""
    feedback = ("correction", "critique", "feedback")

    def choose(problem: Problem) -> str | None:
        for source in method.sources:
            if source == "reference":
                wanted: tuple[str, ...] = ("both", "reference") if method.with_feedback else ("reference",)
            elif source == "feedback":
                wanted = feedback[-1:]
            else:
                wanted = (source,)
            for kind in wanted:
                if kind in problem.shown:
                    return kind
        return None

    return choose
