"""Pre-training data of the house policy: problems under random rulebooks, with an expert's target for every character.

Inputs and targets are separate, as in DAgger. The assistant's text may contain mistakes. The target at every position is the
next character of an expert that sees the context and continues from the digits that were actually written.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass, field

from jinja2 import Template

from errata.feedback.rulebook import USUAL, Rule, judge, rule_of, solve, steps_of
from errata.tasks.rulebook import split_of, write_expression

KINDS = ("plain", "solution", "trace", "correction")
SLIP = 0.35
"""Probability that the plain policy gets a step wrong."""
SLIP_WEIGHTS = (0, 5, 1, 1, 1, 1, 1, 1, 1, 5)
"""Probability of each distance (mod 10) of a wrong result; mostly 1."""
UNSEEN = ("*", 3)
"""``*`` never means ``x*n+3`` in pre-training, because the demonstration teaches that rule."""
UNKNOWN = " "
"""In a target: the shown text does not determine the character."""

Fact = tuple[int, str, int]
usual = rule_of(USUAL)


@dataclass(frozen=True)
class Example:
    user: str
    text: str
    """The assistant's text: the input."""
    target: str
    """The expert's character at each position; :data:`UNKNOWN` where the shown text does not determine it."""


@dataclass(frozen=True)
class Rulebook:
    """What each operator means: the usual plus a constant, or ``None``, a table of random digits."""

    meaning: dict[str, int | None]
    rng: random.Random
    table: dict[Fact, int] = field(default_factory=dict)

    def __call__(self, x: int, operator: str, n: int) -> int:
        plus = self.meaning[operator]
        if plus is None:
            return self.table.setdefault((x, operator, n), self.rng.randrange(10))
        return (usual(x, operator, n) + plus) % 10

    def determines(self, fact: Fact, shown: Set[Fact]) -> bool:
        """Whether the usual rules and the shown facts determine this result."""
        _, operator, _ = fact
        plus = self.meaning[operator]
        return plus == 0 or fact in shown or (plus is not None and any(o == operator for _, o, _ in shown))


def draw_rulebook(rng: random.Random, tables: bool) -> Rulebook:
    """The usual rules; or, with ``tables``, tables alone; or each operator usual or not."""
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
    """The problem alone, under the usual rules; the attempt is as noisy as the policy should be."""
    expression = draw_expression(rng, length)
    text = write(rng, expression, usual, slip)
    return Example(f"{expression}=?", text, targets(text, expression, usual))


def draw_shown(rng: random.Random, kind: str, length: int, template: Template) -> Example:
    """The problem with a solution, or an attempt with its trace or correction, under a rulebook of its own."""
    expression = draw_expression(rng, length)
    # A trace shows only the attempt's own digits, too little to know a table by, so tables are rarer there.
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
    user = template.render(prompt=f"{expression}=?", solution=solution, attempt=attempt, feedback=feedback)
    what = rng.random()
    if what < 0.6:
        text = right
    elif what < 0.85:
        text = attempt  # the text at which a teacher is scored when the student's own attempt is shown
    else:
        text = write(rng, expression, rng.choice((usual, rulebook)), rng.choice((0.1, SLIP)), careless=0.01)
    return Example(user, text, targets(text, expression, rulebook, rulebook, shown))


def write(rng: random.Random, expression: str, rule: Rule, slip: float, careless: float = 0.0) -> str:
    """An attempt under ``rule``; results are wrong with probability ``slip``, copied characters with ``careless``."""
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
    """The facts that a solution, or an attempt with its trace, shows about the steps up to the one lettered ``last``."""
    steps = steps_of(expression)
    return {(int(text[5 * k]), step[1], int(step[2])) for k, step in enumerate(steps) if step[0] <= last}


def targets(
    text: str, expression: str, rule: Rule, rulebook: Rulebook | None = None, shown: Set[Fact] = frozenset()
) -> str:
    """The expert's next character after each prefix of ``text``: the problem's steps, with results for the written digits."""
    target = expression[0]
    for k, step in enumerate(steps_of(expression)):
        fact = int(text[5 * k]), step[1], int(step[2])
        known = rulebook is None or rulebook.determines(fact, shown)
        target += f"{step}={rule(*fact) if known else UNKNOWN}"
    return target
