"""Feedback on failed rollouts after they are judged: an expert's correction, or a model's critique.

Only in training, only for rollouts whose score is below the method's threshold, and only where the method's teacher is shown
feedback, because every such comment costs somebody's time.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from errata.evaluation.sampling import sample
from errata.feedback import judge, load_function
from errata.feedback.correction import Expert, ask_person, corrected_verdict
from errata.feedback.critique import Critic
from errata.methods import Method, TeacherMethod
from errata.recipe import models
from errata.recipe.config import ErrataConfig
from errata.records import Messages, Rollout, Row

logger = logging.getLogger(__name__)

_FILLER: Messages = [{"role": "user", "content": "."}]
"""A prompt that only fills a batch up."""

Write = Callable[[list[Messages], int], list[list[int]]]
"""Prompts, most tokens -> the policy's token ids. On several processes all call it, with equally many prompts."""
Metrics = dict[str, float]


@dataclass(frozen=True)
class Comments:
    """``comments(rollouts, rows, step)``: this process's rollouts, the failed ones with comments as feedback, and metrics."""

    threshold: float
    """Reward from which a rollout counts as solved."""
    corrections: Corrections | None = None
    critiques: Critiques | None = None

    def __call__(self, rollouts: list[Rollout], rows: Sequence[Row], step: int) -> tuple[list[Rollout], Metrics]:
        failed = [i for i, r in enumerate(rollouts) if r.reward is not None and not r.solved(self.threshold)]
        if self.corrections is not None:
            return self.corrections(rollouts, rows, failed)
        if self.critiques is not None:
            return self.critiques(rollouts, failed, step)
        return rollouts, {}


def comments_of(
    config: ErrataConfig,
    method: Method,
    columns: Sequence[str],
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    write: Write,
) -> Comments:
    """The comments that ``correction``, ``critic``, ``critic_template`` and ``critic_max_tokens`` ask for.

    Args:
        columns: of the data, where they are known.
        write: samples from the policy.
    Raises:
        ValueError: a correction without a source (no such function or column, nobody at a terminal), a critic that cannot
            be loaded, a template with an error. A source that fails later leaves the verdict as it was.
    """
    threshold = method.success_threshold
    shows_feedback = isinstance(method, TeacherMethod) and ("feedback" in method.sources or method.with_feedback)
    for name in ("correction", "critic"):
        if getattr(config, name) is not None and not shows_feedback:
            logger.warning("%s: not used, because method %s shows its teacher no feedback", name, config.method)
    corrections = critiques = None
    column, expert = _source(config.correction, columns, accelerator.num_processes)
    if shows_feedback and config.correction is not None:
        corrections = Corrections(column, expert, config.verifier_timeout_s)
    if shows_feedback and config.critic is not None:
        critiques = Critiques(config, threshold, accelerator, tokenizer, write)
    return Comments(threshold, corrections, critiques)


@dataclass(frozen=True)
class Corrections:
    """Corrections from a column of the data, or from an expert."""

    column: str
    expert: Expert | None
    timeout_s: float

    def __call__(
        self, rollouts: list[Rollout], rows: Sequence[Row], failed: Sequence[int]
    ) -> tuple[list[Rollout], Metrics]:
        texts, errors = [str(rows[i].get(self.column) or "") for i in failed], [""] * len(failed)
        if self.expert is not None:
            texts, errors = _answers(self.expert, [rollouts[i] for i in failed], self.timeout_s)
        new = list(rollouts)
        for i, text, error in zip(failed, texts, errors, strict=True):
            verdict = corrected_verdict(rollouts[i].verdict, text)
            if error:
                verdict = replace(verdict, info={**verdict.info, "correction_error": error})
            new[i] = replace(rollouts[i], verdict=verdict)
        given = sum(gather_object([sum(bool(t.strip()) for t in texts)]))
        return new, {"correction/given": given / sum(gather_object([len(rollouts)]))}


class Critiques:
    """Critiques by the policy itself or by another model."""

    def __init__(
        self,
        config: ErrataConfig,
        threshold: float,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        write: Write,
    ) -> None:
        self._config, self._accelerator, self._write = config, accelerator, write
        self._by_policy = config.critic == "policy"
        self._model: torch.nn.Module | None = None
        self._tokenizer = tokenizer
        if not self._by_policy:
            self._model, self._tokenizer = _other_model(str(config.critic), config, accelerator)
        self._seed = self._prompts_needed = 0
        self._critic = Critic(
            self._policy_writes if self._by_policy else self._model_writes,
            count_tokens=lambda text: len(self._tokenizer(text, add_special_tokens=False)["input_ids"]),
            template=config.critic_template,
            threshold=threshold,
        )

    def __call__(self, rollouts: list[Rollout], failed: Sequence[int], step: int) -> tuple[list[Rollout], Metrics]:
        rank = self._accelerator.process_index
        # The same for a resumed run, another in every step and process.
        self._seed = random.Random(f"{self._config.seed}-{step}-{rank}-critic").getrandbits(31)
        self._prompts_needed = max(gather_object([len(failed)]))
        if self._prompts_needed and not failed and self._by_policy:
            self._critic.generate([])  # engines and sharded models generate on every process or on none
        new = [replace(r, verdict=v) for r, v in zip(rollouts, self._critic(rollouts), strict=True)]
        infos = [r.verdict.info for r in new]
        counts = gather_object(
            [
                (
                    sum(i.get("critique_tokens", 0) for i in infos),
                    sum(i.get("critique_prompt_tokens", 0) for i in infos),
                    sum(r.length for r in rollouts),
                )
            ]
        )
        written, read, sampled = (sum(numbers) for numbers in zip(*counts, strict=True))
        return new, {
            "critic/tokens": float(written),
            "critic/prompt_tokens": float(read),
            "critic/share": written / max(written + sampled, 1),
        }

    def _policy_writes(self, prompts: list[Messages]) -> list[str]:
        # A server is given every process's prompts as one list and answers in equal parts.
        filled = [*prompts, *[_FILLER] * (self._prompts_needed - len(prompts))]
        with _random_numbers(self._accelerator.device, self._seed):
            ids = self._write(filled, self._config.critic_max_tokens)
        return list(self._tokenizer.batch_decode(ids[: len(prompts)], skip_special_tokens=True))

    def _model_writes(self, prompts: list[Messages]) -> list[str]:
        config = self._config
        answers = sample(
            self._model,
            self._tokenizer,
            [{"problem_id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)],
            lambda completions, **_: [None] * len(completions),
            k=1,
            temperature=config.temperature,
            top_p=config.top_p,
            max_completion_length=config.critic_max_tokens,
            batch_size=config.per_device_train_batch_size,
            seed=self._seed,
            timeout_s=None,
            progress=False,
        )
        return [row["completion"] for row in answers]


def _source(correction: str | None, columns: Sequence[str], processes: int) -> tuple[str, Expert | None]:
    """The column of the corrections, or the expert who gives them."""
    if correction is None:
        return "", None
    if correction == "person":
        if processes > 1 or not sys.stdin.isatty():
            raise ValueError(
                "correction: a person is asked in the terminal of a run of one process; name a column or function"
            )
        return "", ask_person
    if ":" in correction:
        return "", load_function(correction, "correction")
    if columns and correction not in columns:
        raise ValueError(
            f"correction: the data has no column {correction!r} (has {', '.join(columns)}); "
            "name one, file.py:function, or person"
        )
    return correction, None


def _answers(expert: Expert, failed: Sequence[Rollout], timeout_s: float) -> tuple[list[str], list[str]]:
    """The expert's correction of each rollout, and its error where it failed: as with a verifier, that costs one answer."""

    def each(*, rollouts: Sequence[Rollout], **_: object) -> list[Mapping[str, object]]:
        return [{"score": 0.0, "feedback": expert(r) or ""} for r in rollouts]

    each.limits_own_time = expert is ask_person  # type: ignore[attr-defined]
    if not failed:
        return [], []
    verdicts = judge(
        each,
        prompts=[r.prompt for r in failed],
        completions=[r.completion for r in failed],
        columns={"rollouts": list(failed)},
        timeout_s=timeout_s,
    )
    return [v.feedback for v in verdicts], [str(v.info.get("error", "")) for v in verdicts]


def _other_model(
    name: str, config: ErrataConfig, accelerator: Accelerator
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    try:
        path, trust = models.model_path(name), config.trust_remote_code
        tokenizer = models.load_tokenizer(path, trust)
        device = accelerator.device
        dtype = "bfloat16" if device.type == "cuda" else "float32"
        model = models.load_model(path, dtype=dtype, trust_remote_code=trust)
    except ValueError as error:
        raise ValueError(f"critic: {str(error).removeprefix('model: ')}") from error
    return model.to(device).eval().requires_grad_(False), tokenizer


@contextmanager
def _random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` inside, the run's own afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
