"""errata's tasks under Inspect AI: ``inspect eval errata/task -T name=rulebook/new-rule --model MODEL``.

The verifier's score is the sample's value, and its feedback the explanation, so that ``inspect view`` shows it.
"""

from __future__ import annotations

from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from errata.adapters.problems import Problems

_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task(name="task")
def errata_task(
    name: str = "rulebook/new-rule",
    split: str = "test",
    path: str | None = None,
    limit: int | None = None,
    args: dict[str, Any] | None = None,
) -> Task:
    """A task of errata as one of Inspect AI's; the arguments are those of :class:`errata.adapters.Problems`."""
    problems = Problems(name, split=split, path=path, limit=limit, args=args)
    samples = [
        Sample(input=_input(row["prompt"]), target=str(row.get("answer") or ""), id=problem_id)
        for problem_id, row in problems.rows.items()
    ]
    return Task(dataset=MemoryDataset(samples, name=f"{name} ({split})"), solver=generate(), scorer=verdict(problems))


@scorer(metrics=[mean(), stderr()])
def verdict(problems: Problems) -> Scorer:
    """The score of the task's verifier; a sample on which it fails is left out of the metrics."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        found = await problems.judged(str(state.sample_id), answer)
        more = {"kind": found.kind, **found.info}
        if found.score is None:
            return Score.unscored(reason="verifier_failed", answer=answer, metadata=more)
        return Score(value=float(found.score), answer=answer, explanation=found.feedback or None, metadata=more)

    return score


def _input(prompt: Any) -> str | list[ChatMessage]:
    if isinstance(prompt, str):
        return prompt
    return [_MESSAGES[message["role"]](content=message["content"]) for message in prompt]
