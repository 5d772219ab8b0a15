"""Signs of collapse in a run's log. Their thresholds are ours (docs/collapse.md); ``training/guard.py`` acts on them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from errata.records import Row, State
from errata.training.length_warning import length_warning

LEAST_PROBLEMS = 8
"""Accuracies on fewer problems are not judged: their standard error is not known well enough."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of collapse."""

    name: Literal["accuracy", "teacher", "reward", "length", "entropy", "quotes", "context", "judge"]
    said: str
    """In one line."""
    acts: bool = True
    """Whether the guard acts on it, or only says it."""


def signs_of_evaluations(rows: Sequence[Row], k: int) -> list[Sign]:
    """Signs at the last of a run's evaluations.

    - ``accuracy``: avg@k is below its best by more than two standard errors of the difference, each evaluation's by itself. It
      acts where it is below half of the best at two evaluations in a row: learning has its dips.
    - ``teacher``: the teacher solves fewer of the problems on which it was tried than the student does without what it is
      shown, by more than two standard errors, while the student does not improve.

    Args:
        rows: as in ``eval.jsonl``, oldest first.
        k: completions per problem.
    """
    if not rows:
        return []
    *before, now = rows
    name, found = f"avg@{k}", []
    best = max(before, key=lambda row: row[name], default=now)
    if _fell(now, best, name):
        said = f"{name} fell from {best[name]:.3f} at step {best.get('step', 0)} to {now[name]:.3f}"
        low = all(_fell(row, best, name) and row[name] < 0.5 * best[name] for row in rows[-2:])
        found.append(Sign("accuracy", said, low))
    if now.get("teacher_problems", 0) < LEAST_PROBLEMS:
        return found
    improves = bool(before) and now[name] > before[-1][name]
    if not improves and now["teacher_lead"] + 2 * now["teacher_lead_se"] < 0:
        found.append(
            Sign(
                "teacher",
                f"the teacher solves {now['teacher_accuracy']:.3f} of the problems on which the student solves "
                f"{now['student_accuracy']:.3f} without it",
            )
        )
    return found


def _fell(now: Row, best: Row, name: str) -> bool:
    error = math.hypot(_error(best, name), _error(now, name))
    return bool(now["n_problems"] >= LEAST_PROBLEMS and best[name] - now[name] > 2 * error)


def _error(row: Row, name: str) -> float:
    """Standard error of an accuracy, from its 95 % interval."""
    return float(row.get(f"{name}_high", row[name]) - row.get(f"{name}_low", row[name])) / 3.92


class Steps:
    """What the signs need of a run's logged steps: of each number its first and last values, and the reward's best window.

    Its size does not grow with the run.

    Args:
        window: values on either side.
    Raises:
        ValueError: a window below 1.
    """

    _NAMES = (
        "reward",
        "entropy",
        "rollouts/quotes_reference",
        "rollouts/mentions_feedback",
        "context/none",
        "groups/solve_all",
        "rollouts/unjudged",
    )
    _LENGTH = ("completions/mean_length", "teacher/divergence")
    """Compared with each other, so kept of the steps that have both."""

    def __init__(self, window: int = 10) -> None:
        if window < 1:
            raise ValueError(f"window: {window} is below 1")
        self.window, self.count = window, 0
        self._values: dict[str, int] = {}
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}
        self._best: list[float] = []

    def add(self, row: Row) -> None:
        """Take in one row of ``metrics.jsonl``. What it does not hold is not judged."""
        self.count += 1
        held = [name for name in (*self._NAMES, *self._LENGTH) if isinstance(row.get(name), int | float)]
        if not set(self._LENGTH) <= set(held):
            held = [name for name in held if name not in self._LENGTH]
        for name in held:
            self._values[name] = self._values.get(name, 0) + 1
            first = self._first.setdefault(name, [])
            if len(first) < self.window:
                first.append(row[name])
            self._last.setdefault(name, deque(maxlen=4 * self.window)).append(row[name])
        if "reward" in held and self._values["reward"] >= 4 * self.window:
            # The best window lies before the last three.
            found = list(self._last["reward"])[: self.window]
            if not self._best or fmean(found) > fmean(self._best):
                self._best = found

    def signs(self, *, has_teacher: bool = True) -> list[Sign]:
        """Signs at the last step, from the medians of the first and the last ``window`` steps.

        - ``reward``: in each of the last three windows its mean was less than half of its best window's, by more than two
          standard errors.
        - ``length``: answers became shorter, their divergence from the teacher did not (``length_warning``).
        - ``entropy``: it fell to less than a third, or rose to more than three times.
        - ``quotes``: the share of answers that quote the reference, or speak of feedback, rose by more than .2.
        - ``context``, ``judge``: nine in ten rollouts have no context; every second one has no verdict. Only said.

        Where the reward rose by a tenth and .01, none of length, entropy and quotes is a sign: a policy that learns may become
        shorter and surer. Where it did not fall by a tenth they are only said.

        Args:
            has_teacher: whether rollouts should have contexts now.
        """
        if self.count < 2 * self.window:
            return []
        reward = self._ends("reward")
        rose = reward is not None and reward[1] > 1.1 * reward[0] + 0.01
        fell = reward is not None and reward[1] < 0.9 * reward[0] - 0.01
        found = self._reward_fell()
        if not rose:
            found += self._changed(fell)
        without, solved, unjudged = (self._ends(n) for n in ("context/none", "groups/solve_all", "rollouts/unjudged"))
        if has_teacher and without is not None and without[1] > 0.9 and (solved is None or solved[1] < 0.5):
            found.append(
                Sign("context", f"{without[1]:.0%} of the rollouts have no context, so no teacher", acts=False)
            )
        if unjudged is not None and unjudged[1] > 0.5:
            found.append(Sign("judge", f"{unjudged[1]:.0%} of the rollouts have no verdict", acts=False))
        return found

    def _changed(self, fell: bool) -> list[Sign]:
        """Signs of length, entropy and quotes, which act where the reward ``fell``."""
        found = []
        if self._ends(self._LENGTH[0]) is not None:
            both = [self._first[n] + list(self._last[n])[-self.window :] for n in self._LENGTH]
            if (said := length_warning(*both, window=self.window)) is not None:
                found.append(Sign("length", said, fell))
        entropy = self._ends("entropy")
        if entropy is not None and not entropy[0] / 3 <= entropy[1] <= 3 * entropy[0]:
            found.append(Sign("entropy", f"the policy's entropy went from {entropy[0]:.3f} to {entropy[1]:.3f}", fell))
        for name, said in (
            ("rollouts/quotes_reference", "quote the reference"),
            ("rollouts/mentions_feedback", "speak of feedback that the policy never saw"),
        ):
            share = self._ends(name)
            if share is not None and share[1] > share[0] + 0.2:
                found.append(Sign("quotes", f"{share[1]:.0%} of the answers {said}, at first {share[0]:.0%}", fell))
        return found

    def _reward_fell(self) -> list[Sign]:
        if not self._best:
            return []
        w, rewards = self.window, list(self._last["reward"])
        last = [rewards[w : 2 * w], rewards[2 * w : 3 * w], rewards[3 * w :]]
        if all(_below_half(now, self._best) for now in last):
            return [Sign("reward", f"the mean reward fell from {fmean(self._best):.3f} to {fmean(last[-1]):.3f}")]
        return []

    def _ends(self, name: str) -> tuple[float, float] | None:
        """Medians of the first and the last window; ``None`` before there are two."""
        if self._values.get(name, 0) < 2 * self.window:
            return None
        return median(self._first[name]), median(list(self._last[name])[-self.window :])

    def state_dict(self) -> State:
        """All of it, as JSON can hold it."""
        last = {name: list(values) for name, values in self._last.items()}
        return {"count": self.count, "values": self._values, "first": self._first, "last": last, "best": self._best}

    def load_state_dict(self, state: State) -> None:
        """Restore what ``state_dict`` returned."""
        self.count, self._best = state["count"], list(state["best"])
        self._values, self._first = dict(state["values"]), {n: list(v) for n, v in state["first"].items()}
        self._last = {n: deque(v, maxlen=4 * self.window) for n, v in state["last"].items()}


def signs_of_steps(rows: Iterable[Row], *, window: int = 10, has_teacher: bool = True) -> list[Sign]:
    """``Steps.signs`` at the last of the rows, oldest first."""
    steps = Steps(window)
    for row in rows:
        steps.add(row)
    return steps.signs(has_teacher=has_teacher)


def _below_half(now: Sequence[float], best: Sequence[float]) -> bool:
    error = math.hypot(*(stdev(w) / math.sqrt(len(w)) if len(w) > 1 else 0.0 for w in (now, best)))
    return fmean(now) < 0.5 * fmean(best) and fmean(best) - fmean(now) > 2 * error
