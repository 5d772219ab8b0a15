"""``Experience``: the built-in methods' memory of a run, in one object with one state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from errata.experience._check import saved_by
from errata.experience.buffer import SuccessBuffer
from errata.experience.curriculum import Curriculum
from errata.experience.history import FeedbackHistory
from errata.experience.ledger import UNSEEN, PassRateLedger
from errata.records import Group


@dataclass
class Experience:
    """Pass-rate ledger, success buffer, curriculum and feedback history, each only where the method uses it."""

    ledger: PassRateLedger | None = None
    buffer: SuccessBuffer | None = None
    curriculum: Curriculum | None = None
    history: FeedbackHistory | None = None
    threshold: float = 1.0
    """Reward from which a rollout counts as solved."""
    step: int | None = field(default=None, init=False)
    """The last step observed."""

    @property
    def stage(self) -> int:
        """The curriculum's stage; 1 without one."""
        return 1 if self.curriculum is None else self.curriculum.stage

    def rate(self, problem_id: str) -> float:
        """The problem's smoothed pass rate as of its last visit; ½ without a ledger."""
        return UNSEEN if self.ledger is None else self.ledger.rate(problem_id)

    def observe(self, groups: Iterable[Group], *, step: int) -> None:
        """Enter the results of one step: the groups of all processes, in one fixed order.

        The curriculum sees the step's pass rate first, so that a reset of the ledger falling due leaves it with this
        step's results alone. Then every group enters the ledger, its successes the buffer, and its failures with feedback
        the history. Rollouts that were not judged count nowhere.
        """
        self.step = step
        groups = list(groups)
        judged = [[r for r in group if r.reward is not None] for group in groups]
        solved = [sum(r.solved(self.threshold) for r in rollouts) for rollouts in judged]
        if self.curriculum is not None:
            resets = self.curriculum.resets
            attempts = sum(map(len, judged))
            self.curriculum.observe(step, sum(solved) / attempts if attempts else None)
            if self.ledger is not None and self.curriculum.resets > resets:
                self.ledger.reset()
        if self.history is not None:
            self.history.begin(step)
        for group, rollouts, n_correct in zip(groups, judged, solved, strict=True):
            if self.ledger is not None and rollouts:
                self.ledger.update(group.problem_id, n_correct, len(rollouts), step)
            if self.buffer is not None:
                least = self.threshold if self.buffer.min_reward is None else self.buffer.min_reward
                for rollout in rollouts:
                    if rollout.reward is not None and rollout.reward >= least:
                        self.buffer.add(group.problem_id, rollout.completion, rollout.reward, step)
            if self.history is not None:
                self._store_failures(group, self.history, step)

    def _store_failures(self, group: Group, history: FeedbackHistory, step: int) -> None:
        for rollout in group:
            verdict = rollout.verdict
            if verdict.score is not None and not rollout.solved(self.threshold) and verdict.kind != "error":
                history.add(
                    group.problem_id, rollout.completion, verdict.feedback, step, leaks_answer=verdict.leaks_answer
                )

    def metrics(self) -> dict[str, float]:
        """Numbers for the step's log: ``curriculum/stage``, ``ledger/problems``, ``buffer/hits``, ..."""
        found: dict[str, float] = {}
        if self.curriculum is not None:
            found["curriculum/stage"] = self.curriculum.stage
        if self.ledger is not None:
            found["ledger/problems"] = len(self.ledger)
        if self.buffer is not None:
            found |= {f"buffer/{name}": value for name, value in self.buffer.metrics().items()}
        if self.history is not None:
            found |= {f"history/{name}": value for name, value in self.history.metrics().items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable, of the parts that are there."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the experience that wrote ``state``. Raises ``ValueError`` if that one lacked a part this one has."""
        parts = self._parts()
        saved_by(state, *parts)
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, PassRateLedger | SuccessBuffer | Curriculum | FeedbackHistory]:
        parts = {
            "ledger": self.ledger,
            "buffer": self.buffer,
            "curriculum": self.curriculum,
            "history": self.history,
        }
        return {name: part for name, part in parts.items() if part is not None}
