"""When does warm-up end? DRIFT's two stages (arXiv 2606.30345): self-distillation alone, then routing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from errata.experience._check import finite, saved_by, whole


class Curriculum:
    """Stage 1 until the switch, stage 2 from there on; never back.

    ``switch_step=n`` switches at step n, so that steps 0 to n−1 are warm-up (the paper: about 60; 0: no warm-up).
    ``switch_step=None`` switches at a plateau of the running pass rate: when its mean over the last ``window`` steps
    has not risen more than ``min_gain`` above its best for ``patience`` steps in a row. The paper gives no rule; this
    one is known from learning-rate schedules. With the defaults the earliest switch is at the 30th step, a flat or
    dipping start of up to 29 steps is sat out, and a pass rate that climbs 0.01 in 20 steps still counts as learning.

    ``reset_every=n`` asks for the ledger to be emptied every n steps, counted from ``reset_after`` steps after the switch
    (released code, optional; ``sample_routing_transition_steps`` there).
    """

    def __init__(
        self,
        switch_step: int | None = 60,
        *,
        reset_every: int | None = None,
        reset_after: int = 0,
        window: int = 10,
        patience: int = 20,
        min_gain: float = 0.01,
    ) -> None:
        self.switch_step = None if switch_step is None else whole("switch_step", switch_step)
        self.reset_every = None if reset_every is None else whole("reset_every", reset_every, least=1)
        self.reset_after = whole("reset_after", reset_after)
        self.window = whole("window", window, least=1)
        self.patience = whole("patience", patience, least=1)
        self.min_gain = finite("min_gain", min_gain, low=0.0, high=1.0)
        self.switched_at: int | None = 0 if self.switch_step == 0 else None
        self._step = 0
        self._recent: list[float] = []
        self._best: float | None = None
        self._without_gain = 0

    @property
    def stage(self) -> Literal[1, 2]:
        """1 as long as everything is distilled, then 2."""
        return 1 if self.switched_at is None else 2

    @property
    def step(self) -> int:
        """The last step observed."""
        return self._step

    @property
    def resets(self) -> int:
        """How many resets of the ledger have fallen due so far."""
        if self.switched_at is None or self.reset_every is None:
            return 0
        return max(self._step - self.switched_at - self.reset_after, 0) // self.reset_every

    def observe(self, step: int, pass_rate: float | None) -> None:
        """Enter one step's pass rate, in [0, 1]; ``None``: none of its rollouts was judged. Then ask for the ``stage``.

        Raises ``ValueError`` if ``step`` lies before the last one observed or ``pass_rate`` is no probability.
        """
        step = whole("step", step)
        if step < self._step:
            raise ValueError(f"step: {step} lies before step {self._step}, the last one observed")
        rate = None if pass_rate is None else finite("pass_rate", pass_rate, low=0.0, high=1.0)
        self._step = step
        if self.stage == 2:
            return
        due = self._on_plateau(rate) if self.switch_step is None else step >= self.switch_step
        if due:
            self.switched_at = step
            self._recent = []

    def _on_plateau(self, rate: float | None) -> bool:
        if rate is None:
            return False
        self._recent = [*self._recent, rate][-self.window :]
        if len(self._recent) < self.window:
            return False
        mean = sum(self._recent) / self.window
        if self._best is None or mean > self._best + self.min_gain:
            self._best, self._without_gain = mean, 0
        else:
            self._without_gain += 1
        return self._without_gain >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "switched_at": self.switched_at,
            "step": self._step,
            "recent": list(self._recent),
            "best": self._best,
            "without_gain": self._without_gain,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the curriculum that wrote ``state``."""
        saved_by(state, *self.state_dict())
        self.switched_at, self._step = state["switched_at"], state["step"]
        self._recent, self._best, self._without_gain = list(state["recent"]), state["best"], state["without_gain"]
