"""Tasks of Inspect AI, for ``errata eval``: ``inspect/mine.py:my_task`` or ``inspect/package.module:my_task``.

The task's solver runs until it asks for a generation, and what it would send is the prompt. The completion is given to it in
that place, and the task's own scorers judge where the solver ends. A solver that generates more than once, or with tools, is
refused.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from errata.feedback import completion_text, load_function
from errata.records import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["InspectVerifier", "load", "verifier"]

_MODEL = "none/none"
"""No model of Inspect AI's answers; a scorer that asks one fails, and says so in the verdict."""


def load(name: str, path: str | None = None, split: str = "test", *, strict: bool = True) -> Dataset:
    """The task's samples. Their target is the ``answer``; there is no ``reference``.

    Raises ``ValueError`` for a missing package or task, a solver that does not ask its model once, another split than ``test`` (a
    task of Inspect AI has one data set, which is for evaluation), and a ``path``.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} brings its own samples; leave the path out")
    if split != "test":
        raise ValueError(f"split: {name} has test alone, not {split!r}: its samples are for evaluation")
    rows = []
    for problem_id, sample in _samples(name).items():
        state = asyncio.run(_solved(name, sample, None))
        rows.append(
            {
                "problem_id": problem_id,
                "prompt": [{"role": m.role, "content": m.text} for m in state.messages],
                "answer": _target(sample).text,
                "reference": None,
                "task": name,
            }
        )
    if not rows:
        raise ValueError(f"task: {name} has no samples")
    return Dataset.from_list(rows)


class InspectVerifier:
    """Judges completions by the scorers of a task of Inspect AI; the mean of several, their explanations as feedback."""

    def __call__(
        self, completions: Sequence[Any], problem_id: Sequence[str], task: Sequence[str], **columns: Any
    ) -> list[Verdict]:
        """One verdict each."""
        pairs = zip(completions, problem_id, task, strict=True)
        return [asyncio.run(_judged(name, which, completion_text(answer))) for answer, which, name in pairs]


def verifier(name: str) -> InspectVerifier:
    """:class:`InspectVerifier`, which has no settings."""
    _task(name)  # a mistake in the name shows now, not in the first batch
    return InspectVerifier()


async def _judged(name: str, problem_id: str, answer: str) -> Verdict:
    from inspect_ai.scorer import value_to_float

    sample = _samples(name)[problem_id]
    state = await _solved(name, sample, answer)
    scorers = _task(name).scorer or []
    if not scorers:
        raise ValueError(f"task: {name} has no scorer")
    scores = [s for s in [await score(state, _target(sample)) for score in scorers] if s is not None]
    values = [float(value_to_float()(s.value)) for s in scores]
    said = "\n".join(s.explanation for s in scores if s.explanation and s.explanation != answer)
    return Verdict(sum(values) / len(values), said, info={"answer": next((s.answer for s in scores if s.answer), None)})


async def _solved(name: str, sample: Any, answer: str | None) -> Any:
    """The state after the task's solver with ``answer`` as the model's; without one the state in which a model would be asked."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
    from inspect_ai.solver import TaskState, chain

    given = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else list(sample.input)
    state = TaskState(
        model=ModelName(_MODEL), sample_id=sample.id, epoch=1, input=sample.input, messages=given, target=_target(sample),
        choices=sample.choices, metadata=dict(sample.metadata or {}),
    )  # fmt: skip
    asked: list[Any] = []

    async def generate(state: Any, *args: Any, **kwargs: Any) -> Any:
        if asked or state.tools:
            raise ValueError(
                f"task: {name} asks its model more than once, or gives it tools; only one answer is supported"
            )
        asked.append(list(state.messages))
        text = answer or ""
        state.messages.append(ChatMessageAssistant(content=text))
        state.output = ModelOutput.from_content(model=_MODEL, content=text)
        return state

    solver = _task(name).solver
    state = await (chain(solver) if isinstance(solver, list) else solver)(state, generate)
    if not asked:
        raise ValueError(f"task: {name} asks no model; only one answer is supported")
    if answer is None:
        state.messages = asked[0]
    return state


def _target(sample: Any) -> Any:
    from inspect_ai.scorer import Target

    return Target(sample.target)


@functools.lru_cache(maxsize=8)
def _samples(name: str) -> dict[str, Any]:
    found = {}
    for number, sample in enumerate(_task(name).dataset, 1):
        sample.id = number if sample.id is None else sample.id
        found[str(sample.id)] = sample
    return found


@functools.lru_cache(maxsize=8)
def _task(name: str) -> Any:
    try:
        from inspect_ai import Task
    except ImportError as error:
        raise ValueError(f"task: {name} needs the package inspect-ai; pip install 'errata[inspect]'") from error
    found = load_function(name.partition("/")[2], "task")()
    if not isinstance(found, Task):
        raise ValueError(f"task: {name} returns no task of Inspect AI, but {type(found).__name__}")
    return found
