"""Pre-training data of the house policy: problems under random rulebooks, and the expert's next token at every position.

Inputs and targets differ, as in DAgger (arXiv 1011.0686). The input is a written solution that may contain mistakes; the target
at every position is the token that an expert who sees the context would write after that prefix, continuing from the digit
that was actually written. So the policy learns to solve problems and, as a teacher, to predict the right token after any prefix.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass, field

from errata.contexts.render import Renderer
from errata.feedback.rulebook import USUAL, Rule, judge, rule_of, solve, steps_of
from errata.records import Rollout, TeacherContext, Verdict
from errata.tasks.rulebook import split_of, write_expression

KINDS = ("plain", "solution", "trace", "correction")
SLIP = 0.35
"""Probability that the policy without a context gets a step wrong."""
SLIP_WEIGHTS = (0, 5, 1, 1, 1, 1, 1, 1, 1, 5)
"""Relative probability of each distance (wrong result - right result) mod 10: mostly off by one."""
UNSEEN = ("*", 3)
"""``*`` never means ``x*n+3`` in pre-training: that rule is what the demonstration teaches."""
UNKNOWN = " "
"""Target of a position where the context does not determine the result; it gets no loss."""

Fact = tuple[int, str, int]
usual = rule_of(USUAL)


@dataclass(frozen=True)
class Example:
    """One problem: the user message, the assistant's text as input, and the target of each of its characters."""

    user: str
    written: str
    """The assistant's text, the input: ``7a+3=1``."""
    target: str
    """The expert's character at each position of ``written``, or :data:`UNKNOWN`: ``7a+3=0``."""


@dataclass(frozen=True)
class Rulebook:
    """The meaning of each operator: the usual result plus a constant, or ``None`` for a table of random digits."""

    meaning: dict[str, int | None]
    rng: random.Random
    table: dict[Fact, int] = field(default_factory=dict)

    def __call__(self, x: int, operator: str, n: int) -> int:
        plus = self.meaning[operator]
        if plus is None:
            return self.table.setdefault((x, operator, n), self.rng.randrange(10))
        return (usual(x, operator, n) + plus) % 10

    def is_known(self, fact: Fact, shown: Set[Fact]) -> bool:
        """Whether the usual rules and the ``shown`` facts determine the result of this one."""
        _, operator, _ = fact
        plus = self.meaning[operator]
        return plus == 0 or fact in shown or (plus is not None and any(o == operator for _, o, _ in shown))


def draw_rulebook(rng: random.Random, tables: bool) -> Rulebook:
    """The usual rules, or each operator usual or changed by a constant; with ``tables`` also random tables for all operators."""
    kinds = ("usual", "table", "table", "mixed", "mixed", "mixed") if tables else ("usual", "mixed", "mixed")
    kind = rng.choice(kinds)
    changed = [o for o in "+-*" if kind == "mixed" and rng.choice((False, True))]
    constant = {o: rng.choice([c for c in range(1, 10) if (o, c) != UNSEEN]) for o in "+-*"}
    return Rulebook({o: None if kind == "table" else constant[o] if o in changed else 0 for o in "+-*"}, rng)


def draw_expression(rng: random.Random, length: int, split: str = "train") -> str:
    while True:
        start = rng.randrange(10)
        expression = write_expression(start, [(rng.choice("+-*"), rng.randrange(1, 10)) for _ in range(length)])
        if split_of(expression) == split:
            return expression


def draw_plain(rng: random.Random, length: int, slip: float) -> Example:
    """A problem without a context, under the usual rules; each written step is wrong with probability ``slip``."""
    expression = draw_expression(rng, length)
    written = write(rng, expression, usual, slip)
    return Example(f"{expression}=?", written, targets(written, expression, usual))


def draw_shown(rng: random.Random, kind: str, length: int, renderer: Renderer) -> Example:
    """A problem under a random rulebook, shown with a solution, or with an attempt and its trace or correction.

    ``kind`` is one of ``solution``, ``trace`` and ``correction``.
    """
    expression = draw_expression(rng, length)
    # A trace gives results at the attempt's own digits only, too few to infer a table, so tables are rarer there.
    rulebook = draw_rulebook(rng, tables=kind != "trace" or rng.random() < 0.3)
    attempt = write(rng, expression, rng.choice((usual, usual, rulebook)), rng.choice((0.0, 0.1, SLIP)), careless=0.01)
    right = solve(expression, rulebook)
    solution = feedback = ""
    shown = facts(right, expression)
    if kind == "trace":
        trace = rng.choice(("first", "all", "all"))
        verdict = judge(attempt, expression, rulebook, trace=trace)
        feedback = verdict.feedback
        if not feedback or rng.random() < 0.1:
            solution = right
        else:  # a step that the trace does not name is right, up to the first error or to the end
            shown = facts(attempt, expression, verdict.info["wrong_steps"][0] if trace == "first" else "z")
    elif kind == "correction" and attempt != right:
        feedback = right
    else:
        solution = right
    user = teacher_message(renderer, expression, solution=solution, attempt=attempt, feedback=feedback)
    what = rng.random()
    if what < 0.6:
        written = right
    elif what < 0.85:
        written = attempt  # the text a teacher scores in training: the student's own attempt
    else:
        written = write(rng, expression, rng.choice((usual, rulebook)), rng.choice((0.1, SLIP)), careless=0.01)
    return Example(user, written, targets(written, expression, rulebook, rulebook, shown))


def teacher_message(
    renderer: Renderer, expression: str, *, solution: str = "", attempt: str = "", feedback: str = ""
) -> str:
    """The user message of a teacher that is shown ``solution``, or ``attempt`` with ``feedback``, as training renders it."""
    rollout = Rollout(0, "", f"{expression}=?", attempt, Verdict(0.0))
    context = TeacherContext("feedback" if feedback else "reference", solution=solution, feedback=feedback)
    return str(renderer.render(rollout, context).prompt)


def write(rng: random.Random, expression: str, rule: Rule, slip: float, careless: float = 0.0) -> str:
    """An attempt under ``rule``: a result is wrong with probability ``slip``, a copied operator or number with ``careless``."""
    text = expression[0]
    for step in steps_of(expression):
        letter, operator, n = tuple(step)
        if rng.random() < careless:
            operator = rng.choice("+-*")
        if rng.random() < careless:
            n = rng.choice("123456789")
        value = rule(int(text[-1]), operator, int(n))
        if rng.random() < slip:
            value = (value + rng.choices(range(10), SLIP_WEIGHTS)[0]) % 10
        text += f"{letter}{operator}{n}={value}"
    return text


def facts(text: str, expression: str, last: str = "z") -> set[Fact]:
    """The facts (digit, operator, number) of the problem's steps up to letter ``last``, at the digits written in ``text``."""
    steps = steps_of(expression)
    return {(int(text[5 * k]), step[1], int(step[2])) for k, step in enumerate(steps) if step[0] <= last}


def targets(
    written: str, expression: str, rule: Rule, rulebook: Rulebook | None = None, shown: Set[Fact] = frozenset()
) -> str:
    """The expert's character at each position of ``written``: the problem's steps, with results computed from written digits.

    Where ``rulebook`` is given, a result that the ``shown`` facts do not determine is :data:`UNKNOWN`.
    """
    target = expression[0]
    for k, step in enumerate(steps_of(expression)):
        fact = int(written[5 * k]), step[1], int(step[2])
        known = rulebook is None or rulebook.is_known(fact, shown)
        target += f"{step}={rule(*fact) if known else UNKNOWN}"
    return target
