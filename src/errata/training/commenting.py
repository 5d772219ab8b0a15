"""What is said to failed attempts once they are judged: an expert's correction, or a model's critique.

It is asked for in training alone, of rollouts whose combined score is below the method's threshold, and only where the
method has a teacher that is shown feedback: each of these answers costs somebody's time.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object

from errata.evaluation.sampling import sample
from errata.feedback import judge, load_function
from errata.feedback.correction import Expert, ask_person, corrected_verdict
from errata.feedback.critique import Critic
from errata.records import Messages, Rollout
from errata.training import sources

logger = logging.getLogger(__name__)

_STAND_IN: Messages = [{"role": "user", "content": "."}]


class Commentator:
    """``commentator(rollouts, rows)``: this process's rollouts, the failed ones with what was said to them.

    Args:
        trainer: whose settings ``correction``, ``critic``, ``critic_template`` and ``critic_max_tokens`` say who is asked.
        columns: of the data, where they are known.
    Raises:
        ValueError: a correction that cannot be had (no such function or column, nobody at a terminal), a critic that cannot
            be loaded, a template with an error; at a call never: who fails to answer leaves the verdict as it was.
    """

    def __init__(self, trainer: Any, columns: Sequence[str]) -> None:
        self._trainer = trainer
        args = trainer.args
        method = trainer.method
        active = method.uses_teacher and ("feedback" in method.sources or method.with_feedback)
        for name in ("correction", "critic"):
            if getattr(args, name) is not None and not active:
                logger.warning("%s: nobody is asked, for method %s shows its teacher no feedback", name, args.method)
        self._column, self._expert = _source(args.correction, columns, trainer.accelerator.num_processes)
        self._corrects = active and args.correction is not None
        self._critic: Critic | None = None
        self._most = 0
        if active and args.critic is not None:
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            generate = partial(self._by_policy, tokenizer)
            if args.critic != "policy":
                model, tokenizer = _other_model(args.critic, trainer)
                generate = partial(self._by_model, model, tokenizer)
            self._critic = Critic(
                generate,
                count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
                template=args.critic_template,
                threshold=method.success_threshold,
            )

    def __call__(self, rollouts: list[Rollout], rows: Sequence[dict[str, Any]]) -> list[Rollout]:
        if self._corrects:
            return self._corrected(rollouts, rows)
        if self._critic is not None:
            return self._criticised(self._critic, rollouts)
        return rollouts

    def _failed(self, rollouts: Sequence[Rollout]) -> list[int]:
        threshold = self._trainer.method.success_threshold
        return [i for i, r in enumerate(rollouts) if r.reward is not None and r.reward < threshold]

    # -- corrections ----------------------------------------------------------------------------------------------

    def _corrected(self, rollouts: list[Rollout], rows: Sequence[dict[str, Any]]) -> list[Rollout]:
        failed = self._failed(rollouts)
        texts, errors = [str(rows[i].get(self._column) or "") for i in failed], [""] * len(failed)
        if self._expert is not None:
            asked = [replace(rollouts[i], row=dict(rows[i])) for i in failed]
            texts, errors = _answers(self._expert, asked, self._trainer.args.verifier_timeout_s)
        new = list(rollouts)
        for i, text, error in zip(failed, texts, errors, strict=True):
            verdict = corrected_verdict(rollouts[i].verdict, text)
            if error:
                verdict = replace(verdict, info={**verdict.info, "correction_error": error})
            new[i] = replace(rollouts[i], verdict=verdict)
        given = sum(gather_object([sum(bool(t.strip()) for t in texts)]))
        self._trainer.log_metric("correction/given", given / sum(gather_object([len(rollouts)])))
        return new

    # -- critiques ------------------------------------------------------------------------------------------------

    def _criticised(self, critic: Critic, rollouts: list[Rollout]) -> list[Rollout]:
        failed = len(self._failed(rollouts))
        self._most = max(gather_object([failed]))
        if self._most and not failed and self._trainer.args.critic == "policy":
            critic.generate([])  # engines and sharded models generate on every process or on none
        new = [replace(r, verdict=v) for r, v in zip(rollouts, critic(rollouts), strict=True)]
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
        written, read, attempted = (sum(numbers) for numbers in zip(*counts, strict=True))
        self._trainer.log_metric("critic/tokens", written)
        self._trainer.log_metric("critic/prompt_tokens", read)
        self._trainer.log_metric("critic/share", written / max(written + attempted, 1))
        return new

    def _by_policy(self, tokenizer: Any, prompts: list[Messages]) -> list[str]:
        trainer = self._trainer
        # A server is given every process's prompts as one list and answers in equal parts.
        filled = [*prompts, *[_STAND_IN] * (self._most - len(prompts))]
        with _own_random_numbers(trainer, self._seed()):
            ids = trainer.write(
                filled,
                temperature=trainer.temperature,
                top_p=trainer.top_p,
                max_tokens=trainer.args.critic_max_tokens,
            )
        return list(tokenizer.batch_decode(ids[: len(prompts)], skip_special_tokens=True))

    def _by_model(self, model: Any, tokenizer: Any, prompts: list[Messages]) -> list[str]:
        trainer = self._trainer
        answers = sample(
            model,
            tokenizer,
            [{"problem_id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)],
            lambda completions, **_: [None] * len(completions),
            k=1,
            temperature=trainer.temperature,
            top_p=trainer.top_p,
            max_completion_length=trainer.args.critic_max_tokens,
            batch_size=trainer.args.per_device_train_batch_size,
            seed=self._seed(),
            timeout_s=None,
            progress=False,
        )
        return [row["completion"] for row in answers]

    def _seed(self) -> int:
        """The same for a resumed run, another in every step and process."""
        trainer = self._trainer
        place = f"{trainer.args.seed}-{trainer.state.global_step}-{trainer.accelerator.process_index}-critic"
        return random.Random(place).getrandbits(31)


def _source(correction: str | None, columns: Sequence[str], processes: int) -> tuple[str, Expert | None]:
    """The column of the corrections, or whom to ask for them."""
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
    """What the expert says to each, and where it failed why: as with a verifier, one failure costs one answer."""

    def asked(*, rollouts: Sequence[Rollout], **_: Any) -> list[dict[str, Any]]:
        return [{"score": 0.0, "feedback": expert(r) or ""} for r in rollouts]

    asked.limits_own_time = expert is ask_person  # type: ignore[attr-defined]
    if not failed:
        return [], []
    said = judge(
        asked,
        prompts=[r.prompt for r in failed],
        completions=[r.completion for r in failed],
        columns={"rollouts": list(failed)},
        timeout_s=timeout_s,
    )
    return [v.feedback for v in said], [str(v.info.get("error", "")) for v in said]


def _other_model(name: str, trainer: Any) -> tuple[Any, Any]:
    try:
        path, trust = sources.model_path(name), trainer.args.trust_remote_code
        tokenizer = sources.load_tokenizer(path, trust)
        device = trainer.accelerator.device
        dtype = "bfloat16" if device.type == "cuda" else "float32"
        model = sources.load_model(path, dtype=dtype, trust_remote_code=trust)
    except ValueError as error:
        raise ValueError(f"critic: {str(error).removeprefix('model: ')}") from error
    return model.to(device).eval().requires_grad_(False), tokenizer


@contextmanager
def _own_random_numbers(trainer: Any, seed: int) -> Iterator[None]:
    device = trainer.accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
