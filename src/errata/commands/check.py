"""``errata tasks RECIPE --check``: whether rows, verifier and teacher's prompt are what a run needs, before any training."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from errata.commands.preview import attempts_at, context_of, judged_by, print_contexts, say, show_prompt
from errata.contexts import DEFAULT, Renderer
from errata.methods import Method, TeacherMethod
from errata.recipe.build import method_of
from errata.recipe.models import check_chat_template, load_tokenizer, model_path
from errata.recipe.read import Recipe
from errata.recipe.rows import rows_of
from errata.recipe.verifiers import check_columns, environments_of, verifiers_of
from errata.records import Prompt, Verdict
from errata.training.findings import KINDS

TRIED = 32
"""Rows on which the verifier is tried."""
_NO_ANSWER = "I do not know."


def check_recipe(recipe: Recipe) -> int:
    """Print what was found. Returns 1 if something would keep the run from learning, else 0.

    Raises ``ValueError`` in one line for rows, columns, a verifier or a model that cannot be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    config, method = recipe.config, method_of(recipe)
    judges = verifiers_of(recipe)
    named = config.task is not None or config.tasks is not None
    split = "train" if named else recipe.script.dataset_train_split
    rows = rows_of(recipe, split=split, task=config.task)
    check_columns(judges, rows.column_names)
    references = rows["reference"] if "reference" in rows.column_names else [None] * len(rows)
    with_reference = sum(bool(text) for text in references)
    say(console, f"rows: {len(rows)}, columns {', '.join(rows.column_names)}; {with_reference} have a reference")

    threshold = method.success_threshold
    judge = judged_by(judges, _weights(recipe, judges), environments_of(config))
    tried = rows.select(range(min(TRIED, len(rows))))
    problems = [*_try_right(console, judge, tried, threshold), *_try_wrong(console, judge, tried, threshold)]

    tokenizer = load_tokenizer(model_path(str(config.model)), config.trust_remote_code)
    check_chat_template(tokenizer, rows[0]["prompt"])
    shown: list[Any] = []
    if isinstance(method, TeacherMethod):
        by_row = [prompts for prompts in _teacher_prompts(recipe, method, tried, judge) if prompts]
        shown = [prompt for prompts in by_row for prompt in prompts.values()]
        for i, (source, prompt) in enumerate(by_row[0].items() if by_row else ()):
            # In training the first source that a rollout has decides, and few have a right attempt beside them.
            word = "else" if i else f"what the teacher of {config.method} sees"
            say(console, f"\n--- {word}: {KINDS.get(source, source)} ---", style="bold")
            show_prompt(console, prompt)
        if not shown:
            problems.append(
                "no row gives the teacher anything to see: add a reference column, or feedback to the verifier"
            )
    problems += _lengths(console, recipe, tokenizer, rows, [text for text in references if text], shown)
    for problem in problems:
        say(console, f"problem: {problem}", style="bold red")
    if not problems:
        say(console, "nothing is wrong that can be seen before training", style="bold green")
    return int(bool(problems))


def _try_right(console: Console, judge: Any, rows: Any, threshold: float) -> list[str]:
    """The verifier on what should be right: each row's reference, else its answer."""
    texts = [(row, row.get("reference") or row.get("answer")) for row in rows]
    judged = [(row, text, judge(row, str(text))) for row, text in texts if text not in (None, "")]
    if not judged:
        say(console, "right answers: none to try (no column reference or answer)")
        return []
    solved = [verdict.score is not None and verdict.score >= threshold for _, _, verdict in judged]
    say(console, f"right answers: {sum(solved)} of {len(judged)} reach the threshold of {threshold:g}")
    if all(solved):
        return []
    row, text, verdict = judged[solved.index(False)]
    return [
        f"the verifier gives {_said(verdict)} to {row['problem_id']}'s own {text!r:.80}; mend the verifier or the row"
    ]


def _try_wrong(console: Console, judge: Any, rows: Any, threshold: float) -> list[str]:
    """The verifier on another row's reference or answer, and on a text without an answer."""
    found: list[tuple[Mapping[str, Any], str, Verdict]] = []
    for number, row in enumerate(rows):
        for text in _others(rows, number, row):
            found.append((row, text, judge(row, text)))
    wrong = [(row, text, v) for row, text, v in found if v.score is not None and v.score >= threshold]
    failed = [(row, text, v) for row, text, v in found if v.score is None]
    with_feedback = sum(bool(v.feedback) for _, _, v in found)
    say(console, f"wrong answers: {len(wrong)} of {len(found)} reach the threshold; {with_feedback} get feedback")
    if found:
        row, text, verdict = found[0]
        say(console, f"  {text!r:.80} for {row['problem_id']}: {_said(verdict)}")
    problems = []
    if wrong:
        row, text, verdict = wrong[0]
        problems.append(
            f"the verifier gives {_said(verdict)} to {text!r:.80} for {row['problem_id']}, which is another's answer"
        )
    if failed:
        row, text, verdict = failed[0]
        problems.append(
            f"the verifier fails on {text!r:.80} for {row['problem_id']}: {verdict.info.get('error', 'no score')}"
        )
    return problems


def _others(rows: Any, number: int, row: Mapping[str, Any]) -> Iterator[str]:
    other = rows[(number + 1) % len(rows)]
    text = other.get("reference") or other.get("answer")
    if text not in (None, "") and other.get("answer") != row.get("answer"):
        yield str(text)
    yield _NO_ANSWER


def _said(verdict: Verdict) -> str:
    score = "no score" if verdict.score is None else f"{verdict.score:g}"
    return score + (
        f" ({verdict.kind or 'feedback'}: {' '.join(verdict.feedback.split())[:160]})" if verdict.feedback else ""
    )


def _teacher_prompts(recipe: Recipe, method: TeacherMethod, rows: Any, judge: Any) -> Iterator[dict[str, Prompt]]:
    """For each row the teacher's prompt for a made-up failed attempt, by those of the method's sources that have something."""
    renderer = _renderer(recipe, method)
    for number in range(len(rows)):
        attempts = attempts_at(rows, number, judge, method.success_threshold)
        found = {s: context_of(replace(method, sources=(s,)), s, attempts) for s in method.sources}
        yield {s: renderer.render(attempts.failed, c).prompt for s, c in found.items() if c.shows_something}


def _lengths(
    console: Console, recipe: Recipe, tokenizer: Any, rows: Any, references: Sequence[str], shown: Sequence[Any]
) -> list[str]:
    def tokens(prompt: Any) -> int:
        if isinstance(prompt, str):
            return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    limit = recipe.config.max_completion_length or 0
    lengths = {
        "student's prompts": [tokens(prompt) for prompt in rows["prompt"]],
        "references": [tokens(text) for text in references],
        "teacher's prompts": [tokens(prompt) for prompt in shown],
    }
    say(console, "\ntokens" + " " * 14 + "median  longest", style="bold")
    for name, found in lengths.items():
        if found:
            say(console, f"{name:<20}{statistics.median(found):>6.0f}{max(found):>9}")
    say(console, f"{'max_completion_length':<20}{limit:>14}")
    longer = sum(n > limit for n in lengths["references"])
    problems = []
    if longer:
        problems.append(
            f"{longer} of {len(references)} references are longer than max_completion_length {limit}; raise it"
        )
    teacher = recipe.config.max_teacher_prompt_length
    if teacher is not None and shown and max(lengths["teacher's prompts"]) > teacher:
        problems.append(
            f"teacher's prompts are longer than max_teacher_prompt_length {teacher}; shown texts lose their middle"
        )
    return problems


def show_recipe(recipe: Recipe, split: str, count: int | None, *, contexts: bool) -> int:
    """Print rows of a recipe, or what student and teacher would see for them, as ``errata tasks`` does for a task."""
    config, method = recipe.config, method_of(recipe)
    name = config.eval_dataset_name if split == "test" else None
    rows = rows_of(recipe, split=split, task=config.task, name=name)
    label = config.task or name or recipe.script.dataset_name
    if contexts:
        judges = verifiers_of(recipe)
        check_columns(judges, rows.column_names)
        title = f"{split}), method {config.method}"
        judge = judged_by(judges, _weights(recipe, judges), environments_of(config))
        print_contexts(rows, judge, method, _renderer(recipe, method), title, count or 1)
        return 0
    console = Console()
    console.print(f"{label} ({split}): {len(rows)} rows, columns {', '.join(rows.column_names)}", highlight=False)
    for row in rows.select(range(min(3 if count is None else count, len(rows)))):
        console.print_json(json.dumps(row, ensure_ascii=False, default=str))
    return 0


def _weights(recipe: Recipe, judges: Sequence[Any]) -> list[float]:
    return [float(w) for w in recipe.config.reward_weights or [1.0] * len(judges)]


def _renderer(recipe: Recipe, method: Method) -> Renderer:
    default = method.context_template if isinstance(method, TeacherMethod) else DEFAULT
    wording = recipe.config.context_template
    history = isinstance(method, TeacherMethod) and method.history > 0
    return Renderer(default if wording is None else wording, default=default, history=history)
