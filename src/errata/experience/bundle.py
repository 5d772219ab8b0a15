"""``Experience``: the built-in methods' memory of a run, in one object with one state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from errata.experience._check import saved_by
from errata.experience.buffer import SuccessBuffer
from errata.experience.curricula import Curricula
from errata.experience.curriculum import Curriculum
from errata.experience.history import FeedbackHistory
from errata.experience.ledger import UNSEEN, PassRateLedger
from errata.records import Group, Rollout, Row


@dataclass
class Experience:
    """Pass-rate ledger, success buffer, curriculum and feedback history, each only where the method uses it."""

    ledger: PassRateLedger | None = None
    buffer: SuccessBuffer | None = None
    curriculum: Curriculum | None = None
    history: FeedbackHistory | None = None
    threshold: float = 1.0
    """Reward from which a rollout counts as solved."""
    tasks: tuple[str, ...] = ()
    """Tasks that have a curriculum each, beginning as ``curriculum``; none: it is the one for all."""
    step: int | None = field(default=None, init=False)
    """The last step observed."""

    def __post_init__(self) -> None:
        self._curricula = None if self.curriculum is None else Curricula(self.curriculum, self.tasks)

    @property
    def stage(self) -> int:
        """The curriculum's stage, of several tasks the lowest; 1 without one."""
        return min(self._stages().values(), default=1 if self.curriculum is None else self.curriculum.stage)

    @property
    def mean_stage(self) -> float:
        """The mean of the stages of the tasks seen so far."""
        stages = self._stages().values()
        return sum(stages) / len(stages) if stages else float(self.stage)

    def stage_of(self, row: Row) -> int:
        """The stage of a row's task."""
        return self.stage if self._curricula is None else self._curricula.stage(row)

    def _stages(self) -> dict[str, int]:
        return {} if self._curricula is None else self._curricula.stages

    def rate(self, problem_id: str) -> float:
        """The problem's smoothed pass rate as of its last visit; ½ without a ledger."""
        return UNSEEN if self.ledger is None else self.ledger.rate(problem_id)

    def observe(self, groups: Iterable[Group], *, step: int) -> None:
        """Enter the results of one step: the groups of all processes, in one fixed order.

        The curriculum sees the step's pass rate first (of several tasks, each its own), so that a reset of the ledger falling due
        leaves it with this step's results alone. Then every group enters the ledger, its successes the buffer, and its failures
        with feedback the history. Rollouts that were not judged count nowhere.
        """
        self.step = step
        groups = list(groups)
        judged = [[r for r in group if r.reward is not None] for group in groups]
        solved = [sum(r.solved(self.threshold) for r in rollouts) for rollouts in judged]
        if self._curricula is not None:
            self._observe_stages(self._curricula, groups, judged, solved, step)
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

    def _observe_stages(
        self, curricula: Curricula, groups: list[Group], judged: list[list[Rollout]], solved: list[int], step: int
    ) -> None:
        # Without names there is one task, which every step holds.
        totals: dict[str, tuple[int, int]] = {} if curricula.tasks else {"": (0, 0)}
        for group, rollouts, n_correct in zip(groups, judged, solved, strict=True):
            task = curricula.task(group.rollouts[0].row)
            correct, attempts = totals.get(task, (0, 0))
            totals[task] = correct + n_correct, attempts + len(rollouts)
        rates = {task: correct / attempts if attempts else None for task, (correct, attempts) in totals.items()}
        for task in curricula.observe(step, rates):
            if self.ledger is not None:
                self.ledger.reset(curricula.problems(task))
        for group in groups:
            curricula.note(group.problem_id, curricula.task(group.rollouts[0].row))

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
        if self._curricula is not None:
            found["curriculum/stage"] = self.mean_stage
            found |= {f"tasks/{name}/stage": stage for name, stage in self._stages().items() if name}
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

    def _parts(self) -> dict[str, PassRateLedger | SuccessBuffer | Curricula | FeedbackHistory]:
        parts = {
            "ledger": self.ledger,
            "buffer": self.buffer,
            "curriculum": self._curricula,
            "history": self.history,
        }
        return {name: part for name, part in parts.items() if part is not None}
