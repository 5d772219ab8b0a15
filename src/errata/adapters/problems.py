"""A task's problems with their verifier, as other libraries want them: one answer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from errata import tasks
from errata.feedback import judge
from errata.records import Verdict


class Problems:
    """The rows of one split of a task, and a verdict on an answer to any of them.

    Args:
        name: a name of ``errata tasks``.
        split: ``train`` or ``test``.
        path: where the task's files lie.
        limit: only the first so many rows.
        args: settings of the verifier (a recipe's ``task_args``).
        timeout_s: seconds that one verdict may take.
    Raises:
        ValueError: as :func:`errata.tasks.load` and :func:`errata.tasks.verifier`.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str = "test",
        path: str | None = None,
        limit: int | None = None,
        args: Mapping[str, Any] | None = None,
        timeout_s: float | None = 60.0,
    ) -> None:
        rows = [dict(row) for row in tasks.load(name, path=path, split=split)]
        self.rows = {str(row["problem_id"]): row for row in (rows if limit is None else rows[:limit])}
        self.name, self.split = name, split
        self._verifier, self._timeout_s = tasks.verifier(name, **(args or {})), timeout_s

    def verdict(self, problem_id: str, answer: str) -> Verdict:
        """The verdict on an answer; its score is ``None`` where the verifier failed."""
        row = self.rows[problem_id]
        prompt = row["prompt"]
        completion = answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        (found,) = judge(
            self._verifier, prompts=[prompt], completions=[completion], columns=columns, timeout_s=self._timeout_s
        )
        return found

    async def judged(self, problem_id: str, answer: str) -> Verdict:
        """As ``verdict``, in a thread, so that other problems go on meanwhile."""
        return await asyncio.to_thread(self.verdict, problem_id, answer)
