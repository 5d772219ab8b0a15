"""A stage for each task of a run: one may be learned from in stage 2 while another is still in its warm-up."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from errata.experience._check import saved_by, whole
from errata.experience.curriculum import Curriculum
from errata.records import Row, fitting


class Curricula:
    """One curriculum for each task, or one for all where no tasks are named.

    A task's curriculum counts its own steps: those since the beginning whose batch held the task. So ``switch_step=60`` gives
    60 steps of warm-up to a task that is in every second batch, too, after 120 steps of the run. The plateau is that of the
    task's own pass rates. Of one curriculum for all, every step counts.

    Args:
        first: the curriculum of a task at its first step; itself the one for all where there are no ``tasks``.
        tasks: names of tasks or environments, matched as ``errata.records.fitting`` does. Rows that none fits are a task more,
            with an empty name.
    """

    def __init__(self, first: Curriculum, tasks: Iterable[str] = ()) -> None:
        self.tasks = tuple(tasks)
        self._first = copy.deepcopy(first)
        self._by_task = {} if self.tasks else {"": first}
        self._held = set(self._by_task)
        self._step: int | None = None
        self._pending: dict[str, int] = {}
        self._problems: dict[str, str] = {}

    def task(self, row: Row) -> str:
        """The name of a row's task."""
        return fitting(row, self.tasks) or ""

    def stage(self, row: Row) -> int:
        """The stage of a row's task."""
        return self._by_task.get(self.task(row), self._first).stage

    @property
    def stages(self) -> dict[str, int]:
        """The stage of each task seen so far, by its name."""
        return {name: curriculum.stage for name, curriculum in sorted(self._by_task.items())}

    def observe(self, step: int, rates: Mapping[str, float | None]) -> list[str]:
        """Enter the pass rates of the tasks in one step's batch, ``None`` for a task of which no rollout was judged.

        Returns the tasks of which a reset of the ledger has fallen due. Raises ``ValueError`` as ``Curriculum.observe``.
        """
        step = whole("step", step)
        passed = step - (self._step or 0)
        if passed < 0:
            raise ValueError(f"step: {step} lies before step {self._step}, the last one observed")
        due = []
        for name, rate in rates.items():
            new = name not in self._by_task
            curriculum = self._by_task.setdefault(name, copy.deepcopy(self._first))
            resets = curriculum.resets
            if new and self._step is None:
                own = step
            else:
                own = curriculum.step + self._pending.pop(name, 0) + (passed if name in self._held else 0)
            curriculum.observe(own, rate)
            if curriculum.resets > resets:
                due.append(name)
        for name in self._held - set(rates):  # its last batch lasted until now
            self._pending[name] = passed
        self._step, self._held = step, set(rates)
        return due

    def note(self, problem_id: str, task: str) -> None:
        """Remember a problem's task, for ``problems``."""
        if self.tasks and self._first.reset_every is not None:
            self._problems[problem_id] = task

    def problems(self, task: str) -> set[str] | None:
        """The problems seen of a task; ``None``: all, where there is one curriculum for all."""
        return {name for name, of in self._problems.items() if of == task} if self.tasks else None

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; of one curriculum for all, that one's."""
        if not self.tasks:
            return self._by_task[""].state_dict()
        return {
            "tasks": {name: curriculum.state_dict() for name, curriculum in self._by_task.items()},
            "first": self._first.state_dict(),
            "step": self._step,
            "held": sorted(self._held),
            "pending": self._pending,
            "problems": self._problems,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the curricula that wrote ``state``. Where that was one for all, every task goes on from its stage.

        Raises ``ValueError`` where that were several and these are one.
        """
        if not self.tasks:
            if "tasks" in state:
                names = ", ".join(state["tasks"])
                raise ValueError(
                    f"state: its curriculum has a stage for each of {names}; name these tasks, or start anew"
                )
            self._by_task[""].load_state_dict(state)
            self._step, self._held = self._by_task[""].step, {""}
            return
        if "tasks" not in state:
            self._first.load_state_dict(state)
            self._by_task, self._held, self._pending, self._problems = {}, set(), {}, {}
            self._step = self._first.step
            return
        saved_by(state, *self.state_dict())
        self._first.load_state_dict(state["first"])
        self._by_task = {}
        for name, saved in state["tasks"].items():
            self._by_task[name] = copy.deepcopy(self._first)
            self._by_task[name].load_state_dict(saved)
        self._step, self._held = state["step"], set(state["held"])
        self._pending, self._problems = dict(state["pending"]), dict(state["problems"])
