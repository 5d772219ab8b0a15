"""The rows of a run: a task's, or those of TRL's ``dataset_name``, checked before any compute is spent."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from errata import tasks
from errata.recipe import own_rows
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.mixture import rows_of_mixture
from errata.recipe.models import fewest_bytes
from errata.recipe.read import Recipe
from errata.tasks.rows import question_of
from errata.validate import nearest

logger = logging.getLogger(__name__)

RESERVED = (
    *("prompts", "completions", "completion_ids", "completion", "images", "image"),
    *("trainer_state", "log_extra", "log_metric", "environments"),
)
"""Names of columns that would be taken for what TRL gives verifiers, or for pictures."""


def rows_of(recipe: Recipe, *, split: str, task: str | None, name: str | None = None) -> Dataset:
    """The rows of a task, or of TRL's ``dataset_name`` or ``datasets``, checked.

    Args:
        split: of the task or the data set.
        task: its name, if the rows are a task's.
        name: rows of one's own to evaluate on, in place of the data set's.

    Raises ``ValueError`` naming the row, the column and the mend; with the recipe's ``strict: false`` rows that cannot be
    used are left out, counted and logged.
    """
    config, script = recipe.config, recipe.script
    strict = config.strict
    if script.dataset_streaming or recipe.mixture.streaming:
        raise ValueError(
            "dataset_streaming: not supported: a run knows all its problems when it begins; set it to false"
        )
    if task is None and config.tasks is not None:
        return _of_mixture(config, split)
    if task is not None:
        rows = tasks.load(task, path=recipe.config.task_path, split=split, strict=strict)
        where = f"{task} ({split})"
    elif name is not None or script.dataset_name is not None or recipe.mixture.datasets:
        where = f"{name or script.dataset_name or 'datasets'} ({split})"
        if name is not None:
            rows = own_rows.read_rows(name, split, argument="eval_dataset_name")
        elif script.dataset_name is None:
            rows = own_rows.read_mixture(recipe.mixture, split)
        elif recipe.mixture.datasets:
            raise ValueError("datasets: the rows are named by dataset_name, too; leave out one of the two")
        else:
            rows = own_rows.read_rows(script.dataset_name, split, config=script.dataset_config)
        rows = own_rows.mapped(rows, mapping(config.columns), chat=config.prompt_format == "chat")
    else:
        raise ValueError("task: missing; name one of `errata tasks`, or a dataset_name with reward_funcs or a verifier")
    return checked(rows, where, strict=strict)


def _of_mixture(config: ErrataConfig, split: str) -> Dataset:
    train = split == "train"
    limit = None if train else config.eval_problems
    rows = rows_of_mixture(config, split=split, seed=config.seed, shuffled=train, limit=limit)
    return checked(rows, f"tasks ({split})", strict=config.strict, repeated=train)


def checked(rows: Dataset, where: str, *, strict: bool = True, repeated: bool = False) -> Dataset:
    """Rows that can be trained on, with a stable ``problem_id``; derived from the prompt where the data has none.

    The same prompt twice is then two problems. ``repeated``: a named problem may be in several rows, as in a weighted mixture.

    Raises ``ValueError`` naming the first row that cannot; ``strict=False`` leaves such rows out and logs how many.
    """
    if len(rows) == 0:
        raise ValueError(f"{where}: the data set is empty; check task_path, dataset_name and the split")
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{where}: no column 'prompt' (has {', '.join(rows.column_names)}); rename the one that holds the problem"
        )
    for name in RESERVED:
        if name in rows.column_names:
            raise ValueError(f"{where}: column {name!r} has a name that errata or TRL uses for its own; rename it")
    named = "problem_id" in rows.column_names
    ids = list(rows["problem_id"]) if named else _stable_ids(rows["prompt"])
    references = rows["reference"] if "reference" in rows.column_names else [None] * len(rows)
    bad = _bad_rows(rows["prompt"], ids, references, repeated=repeated)
    if bad and strict:
        number, problem = min(bad.items())
        raise ValueError(f"{where}: row {number}, {problem} (strict: false leaves such rows out)")
    if len(bad) == len(rows):
        raise ValueError(f"{where}: no usable rows; the first problem: row 0, {bad[0]}")
    if not named:
        rows = rows.add_column("problem_id", ids)
    if bad:
        number, problem = min(bad.items())
        logger.warning("%s: left out %d of %d rows; the first: row %d, %s", where, len(bad), len(rows), number, problem)
        rows = rows.select([number for number in range(len(rows)) if number not in bad])
    return rows


def without_leaks(train: Dataset, test: Dataset, where: str) -> Dataset:
    """The training rows whose question is in no test row. Logs how many were left out.

    Raises ``ValueError`` where none remains.
    """
    reserved = {question_of(prompt) for prompt in test["prompt"]}
    kept = [number for number, prompt in enumerate(train["prompt"]) if question_of(prompt) not in reserved]
    if len(kept) == len(train):
        return train
    if not kept:
        raise ValueError(f"{where}: every training question is in the test split; give other rows for one of the two")
    logger.warning(
        "%s: left out %d of %d training rows whose question is in the test split",
        where,
        len(train) - len(kept),
        len(train),
    )
    return train.select(kept)


def check_enough(config: ErrataConfig, rows: Dataset) -> None:
    """Raises ``ValueError`` where the rows are fewer than one step samples, of which no step could be made."""
    needed = config.generation_batch_size // config.num_generations
    if len(rows) < needed:
        raise ValueError(
            f"train data: {len(rows)} problems, and a step samples {needed} ({config.generation_batch_size} rollouts, "
            f"{config.num_generations} of each); give more problems, or lower per_device_train_batch_size or "
            "steps_per_generation, or raise num_generations"
        )


def fitting(
    rows: Dataset, where: str, limit: int | None, tokenizer: PreTrainedTokenizerBase, *, strict: bool
) -> Dataset:
    """The rows whose prompt has at most ``limit`` tokens; ``None`` is no limit.

    Raises ``ValueError`` naming the first longer one; ``strict=False`` leaves such rows out and logs how many.
    """
    bad: dict[int, int] = {}
    for number, prompt in enumerate(rows["prompt"] if limit is not None else ()):
        assert limit is not None
        if len(json.dumps(prompt, ensure_ascii=False).encode()) > fewest_bytes(limit):
            ids = (
                tokenizer(prompt)["input_ids"]
                if isinstance(prompt, str)
                else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            )
            if len(ids) > limit:
                bad[number] = len(ids)
    if not bad:
        return rows
    number, length = min(bad.items())
    message = (
        f"{where}: row {number}, column 'prompt': has {length:,} tokens, and the model reads {limit:,} beside an answer"
    )
    if strict or len(bad) == len(rows):
        raise ValueError(f"{message}; shorten it, or lower max_completion_length (strict: false leaves such rows out)")
    logger.warning("left out %d of %d rows; the first: %s", len(bad), len(rows), message)
    return rows.select([number for number in range(len(rows)) if number not in bad])


def _bad_rows(
    prompts: Iterable[Any], ids: Sequence[Any], references: Iterable[Any], *, repeated: bool
) -> dict[int, str]:
    """What is wrong with which rows, and the mend."""
    bad: dict[int, str] = {}
    seen: dict[str, tuple[int, Any]] = {}
    texts: bool | None = None  # whether the first usable prompt is a text; all must be of its kind
    for number, (prompt, problem_id, reference) in enumerate(zip(prompts, ids, references, strict=True)):
        if not (_are_messages(prompt) or (isinstance(prompt, str) and prompt.strip())):
            bad[number] = "column 'prompt': must be a non-empty text or a list of messages with role and content"
            continue
        texts = isinstance(prompt, str) if texts is None else texts
        if isinstance(prompt, str) != texts:
            one, other = ("text", "messages") if texts else ("messages", "text")
            bad[number] = f"column 'prompt': is {other}, and that of the rows before it {one}; write all in one form"
        elif not _encodable((prompt, reference, problem_id)):
            bad[number] = "holds half of a character (a lone surrogate), which cannot be written as UTF-8; remove it"
        elif reference is not None and not isinstance(reference, str):
            bad[number] = f"column 'reference': must be a text or null, got {reference!r:.60}"
        elif problem_id is None or not str(problem_id).strip():
            bad[number] = "column 'problem_id': is empty; give every problem a name that stays the same between runs"
        elif (first := seen.setdefault(str(problem_id), (number, prompt)))[1] != prompt:
            bad[number] = (
                f"column 'problem_id': {problem_id!r} is row {first[0]}'s, whose prompt is another; give every problem its own"
            )
        elif not repeated and first[0] != number:
            bad[number] = (
                f"column 'problem_id': {problem_id!r} is row {first[0]}'s, too; give every row its own, or take one out"
            )
    return bad


def _are_messages(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and _has_content(m) for m in prompt)
    )


def _has_content(message: dict[str, Any]) -> bool:
    # An assistant's message that calls tools may say nothing.
    return isinstance(message.get("content"), str | list) or bool(message.get("tool_calls"))


def _encodable(values: Any) -> bool:
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _stable_ids(prompts: Iterable[Any]) -> list[str]:
    """A name for each prompt, made of its text; a prompt that occurs again gets a number."""
    seen: dict[str, int] = {}
    found = []
    for prompt in prompts:
        name = _stable_id(prompt)
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def _stable_id(prompt: Any) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def check_environments(rows: Dataset, environments: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where a row names no environment of the run, or another than its several."""
    if "environment" not in rows.column_names:
        raise ValueError(
            f"environment: there are several ({', '.join(environments)}), so each row must name its own in a column "
            "'environment'; add the column"
        )
    for number, name in enumerate(rows["environment"]):
        if name not in environments:
            raise ValueError(
                f"environment: row {number} names {name!r}, and the run has {', '.join(environments)}"
                f"{nearest(str(name), list(environments))}"
            )


def with_reference(rows: Dataset) -> Dataset:
    """The rows that have a reference; logs how many had none. Raises ``ValueError`` where none has."""
    texts = rows["reference"] if "reference" in rows.column_names else [None] * len(rows)
    kept = [number for number, text in enumerate(texts) if text and text.strip()]
    if not kept:
        raise ValueError(
            "reference: the method learns from it, and no row has one; add the column or use another method"
        )
    if len(kept) < len(rows):
        logger.warning("reference: left out %d of %d rows that have none", len(rows) - len(kept), len(rows))
    return rows.select(kept)


def check_template_tasks(recipe: Recipe, rows: Dataset) -> None:
    """Raises ``ValueError`` where ``context_template`` names a task that neither errata nor the data has."""
    wordings = recipe.config.context_template
    known = {*tasks.names(), *(map(str, set(rows["task"])) if "task" in rows.column_names else ())}
    for name in wordings if isinstance(wordings, dict) else ():
        if not any(task == name or task.startswith(f"{name}/") for task in known):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"context_template: no task {name!r}; {hint}")
