"""``errata tasks NAME --show-context``: what student and teacher would see for a real row, without a model.

Attempts are made up: a failed one is another row's solution, judged by the task's own verifier; a successful sibling's
text is the row's reference. What each leads to is decided and worded by the code that trains.
"""

from __future__ import annotations

import argparse
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text
from torch import nn

from errata import methods, tasks
from errata.contexts import DEFAULT, Renderer
from errata.feedback import judge
from errata.feedback.custom import combine_verdicts
from errata.methods import Method, TeacherMethod
from errata.records import Group, Messages, Rollout, TeacherContext, Verdict
from errata.training.environments import failure, guarded
from errata.training.rollouts import build_rollouts

_TITLES = {
    "sibling": "a sibling succeeded",
    "buffer": "the success buffer holds a solution",
    "feedback": "the attempt failed and there is feedback",
    "hindsight": "something became known after a turn",
    "reference": "the data set has a reference",
}
# Tried after the solutions of other rows, for tasks that have none.
_WRONG = ("```python\nprint(input())\n```", "I do not know.")
_OTHER_ROWS = 8


@dataclass(frozen=True)
class Attempts:
    """What is made up of one row."""

    failed: Rollout
    said: str
    """What became of it, in one line."""
    earlier: Rollout | None
    """Another failed attempt with feedback, for the history."""


def show_contexts(args: argparse.Namespace, rows: Any) -> int:
    """Print the first ``args.rows`` rows as the student sees them and as ``args.method``'s teacher would.

    Raises ``ValueError`` for an unknown method, setting or template, and where the verifier cannot run here.
    """
    method = methods.get(args.method, **_mapping("method_args", args.method_args))
    teacher_method = method if isinstance(method, TeacherMethod) else None
    wording = args.context_template or (DEFAULT if teacher_method is None else teacher_method.context_template)
    renderer = Renderer(wording, history=teacher_method is not None and teacher_method.history > 0)
    try:
        verifier = tasks.verifier(args.name, **_mapping("task_args", args.task_args))
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"task: the verifier of {args.name} cannot run here: {error}") from error
    world = tasks.environment(args.name)
    judge_text = judged_by([verifier], [1.0], {} if world is None else {"": world})
    print_contexts(rows, judge_text, method, renderer, f"{args.split}), method {args.method}", args.rows or 1)
    return 0


def print_contexts(rows: Any, judge_text: Judge, method: Method, renderer: Renderer, title: str, count: int) -> None:
    """Print the first ``count`` rows as the student sees them and as the method's teacher would."""
    console = Console(highlight=False, soft_wrap=True)
    teacher_method = method if isinstance(method, TeacherMethod) else None
    for index in range(min(count, len(rows))):
        row = rows[index]
        shown = "no teacher" if teacher_method is None else f"teacher shown {', else '.join(teacher_method.sources)}"
        say(console, f"{row['problem_id']} ({title}: {shown}", style="bold")
        _heading(console, "What the student sees")
        show_prompt(console, row["prompt"])
        if teacher_method is not None:
            attempts = attempts_at(rows, index, judge_text, method.success_threshold)
            _show_teachers(console, teacher_method, renderer, attempts)


def _show_teachers(console: Console, method: TeacherMethod, renderer: Renderer, attempts: Attempts) -> None:
    _heading(console, "A failed attempt, made up, and its feedback")
    say(console, attempts.failed.completion)
    say(console, attempts.said, style="bold")
    for source in method.sources:
        _heading(console, f"What the teacher sees if {_TITLES.get(source, source)} ({source})")
        context = context_of(method, source, attempts)
        if not context.is_informative:
            say(console, f"Nothing: {_why_nothing(source, method, attempts)}.", style="italic")
            continue
        leaks = "holds the answer" if context.leaks_answer else "does not hold the answer"
        say(console, f"{context.why}; {leaks}", style="italic")
        show_prompt(console, renderer.render(attempts.failed, context).prompt, seen=attempts.failed.prompt)


def context_of(method: TeacherMethod, source: str, attempts: Attempts) -> TeacherContext:
    """The method's own decision, were this its only source and had it what it needs."""
    alone = replace(method, sources=(source,))
    experience, failed = alone.memory(), attempts.failed
    history, buffer = getattr(experience, "history", None), getattr(experience, "buffer", None)
    if history is not None and attempts.earlier is not None:
        verdict = attempts.earlier.verdict
        history.add(
            failed.problem_id, attempts.earlier.completion, verdict.feedback, 0, leaks_answer=verdict.leaks_answer
        )
        history.begin(1)
    solutions = [failed.reference, *(f"[successful attempt {n}]" for n in range(2, method.demonstrations + 1))]
    solved = [
        replace(failed, index=n, completion=text, verdict=Verdict(method.success_threshold))
        for n, text in enumerate(solutions if failed.reference else [], start=1)
        if text
    ]
    if source == "buffer" and buffer is not None:
        for rollout in solved:
            buffer.add(failed.problem_id, rollout.completion, method.success_threshold, 0)
    group = Group(failed.problem_id, (failed, *(solved if source == "sibling" else ())))
    context = alone.context(failed, group, memory=experience, epoch=1.0, rng=random.Random(0))
    return context if context.kind == source else TeacherContext("none")


def _why_nothing(source: str, method: TeacherMethod, attempts: Attempts) -> str:
    if source in ("feedback", "hindsight"):
        return attempts.said if not attempts.failed.verdict.feedback else "the feedback may not be shown (allow_leaks)"
    if not attempts.failed.reference:
        return "this row has no reference that could stand for a solution here"
    if source == "buffer" and getattr(method.memory(), "buffer", None) is None:
        return "this method keeps no success buffer"
    return "it may not be shown (allow_leaks)"


def attempts_at(rows: Any, index: int, judge_text: Judge, threshold: float) -> Attempts:
    """The first made-up attempts at the row that fail with feedback: the present one, and an earlier one."""
    row = rows[index]
    found: list[Rollout] = []
    told = ""
    for text in dict.fromkeys(_texts(rows, index)):
        verdict = judge_text(row, text)
        (rollout,) = build_rollouts([row], [row["prompt"]], [text], [verdict], lengths=[0], indices=[0])
        if verdict.score is None:
            told = told or f"not judged: {verdict.info.get('error', 'no score')}"
        elif verdict.score < threshold and verdict.feedback not in ("", *(r.verdict.feedback for r in found)):
            found.append(rollout)
        if len(found) == 2:
            break
    if not found:
        rollout = replace(rollout, verdict=Verdict(0.0))
        return Attempts(rollout, told or "the verifier gives failed attempts no feedback", None)
    verdict = found[0].verdict
    said = f"score {verdict.score:g}, {verdict.kind or 'feedback'}: {verdict.feedback}"
    return Attempts(found[0], said, found[1] if len(found) > 1 else None)


def _texts(rows: Any, index: int) -> Iterator[str]:
    for step in range(1, min(_OTHER_ROWS, len(rows) - 1) + 1):
        other = rows[(index + step) % len(rows)].get("reference")
        if other:
            yield other
    yield from _WRONG


Judge = Callable[[Mapping[str, Any], str], Verdict]
"""The verdict on a text as an answer to a row."""


def judged_by(
    verifiers: Sequence[Any], weights: Sequence[float], environments: Mapping[str, type] = MappingProxyType({})
) -> Judge:
    """What the verifiers, called as in training, say together. Reward models, which a run loads, are left out.

    Args:
        environments: the recipe's, by name; an attempt is then made in one that was reset for its row, without calling a tool.
    """
    called = [(v, w) for v, w in zip(verifiers, weights, strict=True) if callable(v) and not isinstance(v, nn.Module)]
    named = "" not in environments

    def judge_text(row: Mapping[str, Any], text: str) -> Verdict:
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        judges = list(called)
        if environments:
            world: Any = guarded(environments[str(row["environment"]) if named else ""], 60.0)()
            world.reset(**{name: value for name, value in row.items() if not named or name != "environment"})
            if hasattr(world, "_reply") and not failure(world):
                world._reply(text)
            columns["environments"] = [world]
            if hasattr(world, "get_reward"):
                judges.append((_own_reward, 1.0))
            if reason := failure(world):
                return Verdict(None, kind="error", info={"error": f"environment: {reason}"})
        completion: Any = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        given = {"prompts": [row["prompt"]], "completions": [completion]}
        verdicts = [judge(v, **given, columns=columns, timeout_s=60.0)[0] for v, _ in judges]
        if environments and (reason := failure(world)):
            return Verdict(None, kind="error", info={"error": f"environment: {reason}"})
        return combine_verdicts(verdicts, [w for _, w in judges])

    return judge_text


async def _own_reward(environments: Sequence[Any], **columns: Any) -> list[Any]:
    """What environments that judge by themselves say."""
    given = [environment.get_reward() for environment in environments]
    return [await value if inspect.isawaitable(value) else value for value in given]


def _mapping(name: str, text: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}: must be a mapping, e.g. {{name: value}}, got {text!r}")
    return found


def _heading(console: Console, title: str) -> None:
    say(console, f"\n--- {title} ---", style="bold")


def show_prompt(console: Console, prompt: Messages | str, *, seen: Messages | str = "") -> None:
    """The messages of a prompt; those ``seen`` before are only named."""
    for message in [{"role": "text", "content": prompt}] if isinstance(prompt, str) else prompt:
        again = isinstance(seen, list) and message in seen
        say(console, f"[{message['role']}]" + (" as above" if again else ""), style="dim")
        if not again:
            say(console, str(message["content"]).strip("\n"))


def say(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text(text, style))  # a text of its own: rich would take brackets of a plain string for markup
