"""How hard is each problem now? One smoothed pass rate per problem, across batches and epochs.

The two forms of DRIFT (arXiv 2606.30345): *paper*, an exponential average, and *released*, decayed counts that are
drawn towards one half as long as little has been seen. Plain state, bounded, JSON in and out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from errata.experience._check import finite, problem_id_of, saved_by, whole

UNSEEN = 0.5
"""The pass rate of a problem never seen: medium difficulty, which is also the released form's value for no counts."""


class _Record(NamedTuple):
    """What one problem's visits add up to."""

    step: int
    """Of the last visit."""
    values: tuple[float, ...]
    """released: the decayed counts (s, e) as of that step. paper: (p,)."""


class PassRateLedger:
    """Smoothed pass rate p per problem.

    ``kind="released"``, the code of DRIFT, with s and e the decayed counts of correct and wrong attempts::

        s ← decay^Δ·s + n_correct        raw  = (s+1)/(s+e+2)
        e ← decay^Δ·e + n_wrong          conf = (s+e)/(s+e+8)        p = conf·raw + (1−conf)·½

    ``decay_per="step"``, as released, has Δ = optimizer steps since the last visit. On a large data set a problem
    comes back once an epoch, hundreds of steps later, and nothing of it is remembered; ``decay_per="visit"`` has Δ = 1.
    Simulated (``benchmarks/ledger_decay.py``), it is as good for visits at every step and better for visits 4 to 64
    steps apart; the paper's average tracks such problems better than both.

    ``kind="paper"``, the paper's text: p ← alpha·p + (1−alpha)·n_correct/n_total. The paper gives no alpha and no
    first value. Ours: alpha = ½ (half of the memory is the last visit), and the first visit sets p to what it observed,
    because an invented prior would move one visit's evidence half-way towards itself and file a never-solved problem
    (p = 0, hard) under medium.

    A problem never seen has p = ½. Beyond ``max_problems`` the least recently updated problem is forgotten.
    ``n_correct`` may be fractional (graded rewards).
    """

    def __init__(
        self,
        kind: Literal["released", "paper"] = "released",
        *,
        decay: float = 0.85,
        decay_per: Literal["step", "visit"] = "step",
        alpha: float = 0.5,
        max_problems: int = 50_000,
    ) -> None:
        if kind not in ("released", "paper"):
            raise ValueError(f"kind: must be 'released' or 'paper', got {kind!r}")
        if decay_per not in ("step", "visit"):
            raise ValueError(f"decay_per: must be 'step' or 'visit', got {decay_per!r}")
        self.kind = kind
        self.decay = finite("decay", decay, low=0.0, high=1.0)
        self.decay_per = decay_per
        self.alpha = finite("alpha", alpha, low=0.0, high=1.0)
        self.max_problems = whole("max_problems", max_problems, least=1)
        self._records: OrderedDict[str, _Record] = OrderedDict()  # least recently updated first

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, problem_id: object) -> bool:
        return problem_id in self._records

    def update(self, problem_id: str, n_correct: float, n_total: int, step: int) -> float:
        """Enter one visit's result and return the problem's smoothed pass rate after it.

        Raises ``ValueError`` if ``n_correct`` is not in [0, ``n_total``], ``n_total`` is below 1 (leave out a problem
        with no judged attempt), or ``step`` lies before the problem's last visit.
        """
        problem_id = problem_id_of(problem_id)
        n_total = whole("n_total", n_total, least=1)
        n_correct = finite("n_correct", n_correct, low=0.0, high=float(n_total))
        step = whole("step", step)
        before = self._visited(problem_id, step)
        if self.kind == "paper":
            observed = n_correct / n_total
            p = observed if before is None else self.alpha * before.values[0] + (1 - self.alpha) * observed
            values: tuple[float, ...] = (p,)
        else:
            s, e = self._decayed(before, step, visits=1)
            values = (s + n_correct, e + n_total - n_correct)
        self._records[problem_id] = _Record(step, values)
        self._records.move_to_end(problem_id)
        self._forget_oldest()
        return self._rate(values)

    def rate(self, problem_id: str, step: int | None = None) -> float:
        """The problem's smoothed pass rate: as of its last visit or, where counts decay by the step, as of ``step``."""
        problem_id = problem_id_of(problem_id)
        before = self._records.get(problem_id) if step is None else self._visited(problem_id, whole("step", step))
        if before is None:
            return UNSEEN
        if step is None or self.kind == "paper":
            return self._rate(before.values)
        return self._rate(self._decayed(before, step, visits=0))

    def reset(self, problems: Collection[str] | None = None) -> None:
        """Forget these problems; ``None``: all."""
        for problem_id in list(self._records) if problems is None else problems:
            self._records.pop(problem_id, None)

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; rows are a list, so that their order (who is forgotten next) survives sorted keys."""
        rows = [[problem_id, record.step, *record.values] for problem_id, record in self._records.items()]
        return {"kind": self.kind, "problems": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the ledger that wrote ``state``. Raises ``ValueError`` if that one was of the other kind."""
        saved_by(state, "problems", kind=self.kind)
        self._records = OrderedDict((name, _Record(step, tuple(values))) for name, step, *values in state["problems"])
        self._forget_oldest()

    def _visited(self, problem_id: str, step: int) -> _Record | None:
        before = self._records.get(problem_id)
        if before is not None and step < before.step:
            raise ValueError(
                f"step: {step} lies before step {before.step}, the last visit of {problem_id!r}; "
                "reset() the ledger to start again"
            )
        return before

    def _decayed(self, before: _Record | None, step: int, *, visits: int) -> tuple[float, float]:
        if before is None:
            return 0.0, 0.0
        factor = self.decay ** (step - before.step if self.decay_per == "step" else visits)
        s, e = before.values
        return factor * s, factor * e

    def _rate(self, values: tuple[float, ...]) -> float:
        if self.kind == "paper":
            return values[0]
        s, e = values
        confidence = (s + e) / (s + e + 8)
        return confidence * (s + 1) / (s + e + 2) + (1 - confidence) * UNSEEN

    def _forget_oldest(self) -> None:
        while len(self._records) > self.max_problems:
            self._records.popitem(last=False)
