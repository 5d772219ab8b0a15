"""Judged completions of every problem of a data set, by the policy, or by a teacher with prompts of its own.

Evaluation has no side effects: afterwards the model's train/eval modes and all random number generators are as before.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from errata.evaluation.metrics import summary
from errata.records import Messages
from errata.tasks import Verifier

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions were sampled, as every row of an evaluation says it."""

    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0: no limit."""
    seed: int
    max_completion_length: int
    """Most tokens of a completion."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template."""

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Evaluation(NamedTuple):
    """What :func:`evaluate` returns."""

    metrics: dict[str, Any]
    """:func:`~errata.evaluation.metrics.summary` of the rows."""
    rows: list[Row]
    """The judged completions, as :func:`sample` returns them."""


def evaluate(
    model: Any,
    tokenizer: Any,
    dataset: Iterable[Row],
    verifier: Verifier,
    *,
    k: int,
    threshold: float = 1.0,
    **settings: Any,
) -> Evaluation:
    """:func:`sample` k completions per problem, and :func:`~errata.evaluation.metrics.summary` of them.

    Args:
        threshold: the score from which a completion counts as solved; a run's ``success_threshold``.
        settings: further arguments of :func:`sample`.
    """
    rows = sample(model, tokenizer, dataset, verifier, k=k, **settings)
    return Evaluation({**summary(rows, k=k, threshold=threshold), "sampling": rows[0]["sampling"]}, rows)


def sample(
    model: Any,
    tokenizer: Any,
    dataset: Iterable[Row],
    verifier: Verifier,
    *,
    k: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_completion_length: int,
    batch_size: int,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    messages: Sequence[Messages | str] | None = None,
    timeout_s: float | None = 60.0,
    progress: bool = True,
) -> list[Row]:
    """k judged completions of every problem, in the data set's order.

    Args:
        model: a causal language model of transformers, on its device.
        tokenizer: its tokenizer, with a chat template where prompts are chats.
        dataset: rows with ``prompt``, a chat or a text, ``problem_id`` (the row's number if absent), and whatever
            columns the verifier reads.
        verifier: called as in training. If it fails for a completion, that completion's ``score`` is ``None``.
        k: completions per problem.
        temperature: 0 is greedy.
        top_p: nucleus sampling. The model's own generation settings are not used.
        top_k: likeliest tokens sampled from; 0: all.
        max_completion_length: tokens generated at most.
        batch_size: completions generated at a time. The same batch size, seed and hardware give the same completions.
        seed: of the sampling.
        chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}``; a run's own.
        messages: prompts to use instead of each row's ``prompt``, one per row: a teacher's prompts. Verifiers still get the
            row's own.
        timeout_s: seconds the verifier may take for a batch.
        progress: show a bar on a terminal.
    Returns:
        One row per completion: ``problem_id``, ``sample`` (0 to k−1), ``prompt`` (the one used), ``completion``,
        ``length`` in tokens, ``truncated`` (no end within the length), of the verdict ``score``, ``kind``,
        ``feedback`` and ``info``, and ``sampling``, the settings above.
    Raises:
        ValueError: an argument out of range, no rows, a row without a prompt, a problem_id that occurs twice, messages
            that are not one per row, or chats for a tokenizer without a chat template.
    """
    import torch

    _check_settings(k, temperature, top_p, top_k, max_completion_length, batch_size)
    settings = Sampling(temperature, top_p, top_k, seed, max_completion_length, dict(chat_template_kwargs or {}))
    rows = [dict(row) for row in dataset]
    prompts = _prompts(rows, messages)
    names = _names(rows)
    encoded = [_encode(tokenizer, prompt, index, settings.chat_template_kwargs) for index, prompt in enumerate(prompts)]
    generation = _generation_config(model, tokenizer, settings)
    # Prompts of similar length together need little padding. The longest come first, so that a lack of memory shows at once.
    order = sorted(range(len(rows) * k), key=lambda i: (-len(encoded[i // k]), i))

    found: dict[int, Row] = {}
    with _restored(model, seed), _bar(len(order), shown=progress) as advance, torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            completions = _generate(model, [encoded[i // k] for i in batch], generation)
            texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
            verdicts = _judge(verifier, [rows[i // k] for i in batch], texts, completions, timeout_s)
            for i, ids, text, verdict in zip(batch, completions, texts, verdicts, strict=True):
                found[i] = {
                    "problem_id": names[i // k],
                    "sample": i % k,
                    "prompt": prompts[i // k],
                    "completion": text,
                    "length": len(ids),
                    "truncated": not ids or ids[-1] not in generation.eos_token_id,
                    "score": verdict.score,
                    "kind": verdict.kind,
                    "feedback": verdict.feedback,
                    "info": dict(verdict.info),
                    "sampling": settings.row(),
                }
            advance(len(batch))
    return [found[i] for i in range(len(order))]


def _check_settings(
    k: int, temperature: float, top_p: float, top_k: int, max_completion_length: int, batch_size: int
) -> None:
    for name, value in {"k": k, "max_completion_length": max_completion_length, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if not temperature >= 0:
        raise ValueError(f"temperature: must be at least 0 (greedy), got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: must be in (0, 1], got {top_p}")
    if top_k < 0:
        raise ValueError(f"top_k: must be at least 0 (no limit), got {top_k}")


def _prompts(rows: list[Row], messages: Sequence[Messages | str] | None) -> list[Messages | str]:
    if not rows:
        raise ValueError("dataset: has no rows; evaluate at least one problem")
    for index, row in enumerate(rows):
        if "prompt" not in row:
            raise ValueError(f"dataset: row {index} has no 'prompt'; it has {', '.join(map(repr, row))}")
    if messages is None:
        return [row["prompt"] for row in rows]
    if len(messages) != len(rows):
        raise ValueError(f"messages: {len(messages)} for {len(rows)} rows; give one per row")
    return list(messages)


def _names(rows: list[Row]) -> list[str]:
    names = [str(row.get("problem_id", index)) for index, row in enumerate(rows)]
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    for index, name in enumerate(names):
        if first[name] != index:
            raise ValueError(f"problem_id: rows {first[name]} and {index} are both {name!r}; give each problem its own")
    return names


def _encode(tokenizer: Any, prompt: Messages | str, index: int, template_kwargs: Mapping[str, Any]) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not tokenizer.chat_template:
        raise ValueError(f"tokenizer: has no chat template, but the prompt of row {index} is a chat; use text prompts")
    continued = prompt[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        prompt,
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **template_kwargs,
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _generation_config(model: Any, tokenizer: Any, settings: Sampling) -> Any:
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # transformers fills in settings that are None from the model's own, top_k = 20 and the like; so all are set.
    greedy = settings.temperature == 0
    return GenerationConfig(
        do_sample=not greedy,
        temperature=1.0 if greedy else settings.temperature,
        top_p=1.0 if greedy else settings.top_p,
        top_k=0 if greedy else settings.top_k,
        repetition_penalty=1.0,
        num_beams=1,
        max_new_tokens=settings.max_completion_length,
        eos_token_id=sorted(ends),
        pad_token_id=0 if pad is None else pad,
        use_cache=True,
    )


def _generate(model: Any, prompts: list[list[int]], generation: Any) -> list[list[int]]:
    """Completions as token ids, up to and including the token that ended them."""
    import torch

    longest = max(map(len, prompts))
    pads = [longest - len(ids) for ids in prompts]
    inputs = [[generation.pad_token_id] * n + ids for n, ids in zip(pads, prompts, strict=True)]
    mask = [[0] * n + [1] * len(ids) for n, ids in zip(pads, prompts, strict=True)]
    output = model.generate(
        input_ids=torch.tensor(inputs, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=generation,
    )
    return [_up_to_end(ids, generation.eos_token_id) for ids in output[:, longest:].tolist()]


def _up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[:length]


def _judge(
    verifier: Verifier, rows: list[Row], texts: list[str], ids: list[list[int]], timeout_s: float | None
) -> list[Any]:
    from errata.feedback import judge

    chats = [
        text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, texts, strict=True)
    ]
    columns = {
        name: [row.get(name) for row in rows]
        for name in rows[0]
        if name not in ("prompt", "completion", "completion_ids")
    }
    return judge(
        verifier,
        prompts=[row["prompt"] for row in rows],
        completions=chats,
        completion_ids=ids,
        columns=columns,
        timeout_s=timeout_s,
    )


@contextmanager
def _restored(model: Any, seed: int) -> Iterator[None]:
    """Evaluation mode and seeded generators inside; afterwards modes and generators are as before."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda n: bar.advance(task, n)
