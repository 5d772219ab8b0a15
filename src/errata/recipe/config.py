"""``ErrataConfig``: TRL's ``GRPOConfig`` with errata's settings, so that a TRL user's recipe works unchanged."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import yaml
from trl import GRPOConfig

from errata.recipe.settings import RULES
from errata.validate import check, hints_of, is_plain


def mapping(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A recipe's optional mapping as one."""
    return dict(value) if isinstance(value, dict) else {}


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ErrataConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of a run. Everything TRL's ``GRPOConfig`` has, and the following."""

    _VALID_DICT_FIELDS = [
        *GRPOConfig._VALID_DICT_FIELDS,
        "method_args",
        "task_args",
        "expert_args",
        "verifiers",
        "context_args",
        "columns",
    ]

    model: str | None = _help(None, "Hub id or directory of the policy; `house` is the one this package carries.")
    task: str | None = _help(None, "A task of `errata tasks`, e.g. rulebook/new-rule.")
    task_path: str | None = _help(None, "Directory or file with the task's rows, where it does not make or fetch them.")
    tasks: dict[str, Any] | str | None = _help(
        None,
        "Several tasks at once instead of task: [{name: rulebook/new-rule, weight: 2, args: {...}, path: ...}, ...].",
    )
    task_args: dict[str, Any] | str | None = _help(None, "Settings of the task's verifier, e.g. {feedback: trace}.")
    eval_dataset_name: str | None = _help(
        None, "Rows of your own to evaluate on: a file, a folder or a hub id; `dataset_name`'s test split unless given."
    )
    columns: dict[str, Any] | str | None = _help(
        None, "Columns of your rows under the names that a run reads, e.g. {prompt: question, reference: solution}."
    )
    prompt_format: str = _help(
        "given", "chat: a prompt of your rows that is a text becomes a user's message; given: as it is."
    )
    verifier: list[str] | None = _help(
        None, "Verifiers instead of the task's: file.py:function or package.module:function."
    )
    verifiers: dict[str, Any] | str | None = _help(
        None, "Verifiers by task or environment: {calculator: mine.py:right_number, rulebook: mine.py:right_rule}."
    )
    verifier_timeout_s: float = _help(60.0, "Seconds a verifier may take for a batch before its rollouts go unjudged.")
    verifier_isolation: str = _help(
        "auto",
        "Where verifiers run: each in a process of its own that may crash (process), in this one (none), or in one of its own "
        "where the recipe's `verifier` names it and it is not errata's (auto).",
    )
    correction: str | None = _help(
        None,
        "Who corrects failed attempts: a column of the data, file.py:function, or `person`, who is asked in the terminal.",
    )
    critic: str | None = _help(
        None, "Who criticises failed attempts: `policy`, or another model's hub id or directory."
    )
    critic_template: str | None = _help(
        None, "Wording of the critic's prompt: a .jinja file or Jinja text with problem, attempt, feedback, reference."
    )
    critic_max_tokens: int = _help(512, "Longest critique in tokens, thinking included.")
    tools: list[str] | None = _help(
        None, "Functions that the policy may call in a rollout: file.py:function or package.module:function."
    )
    environment: dict[str, Any] | str | None = _help(
        None,
        "Class whose methods the policy may call, one instance a rollout: file.py:Class or package.module:Class. Several by "
        "name, {calculator: mine.py:Adder, search: mine.py:Search}: a row's column `environment` names its own.",
    )
    environment_timeout_s: float | None = _help(
        60.0, "Seconds that one call of a tool or environment may take; null: no limit, and calls in the main thread."
    )

    method: str = _help("distil", "One of `errata methods`, or file.py:Class.")
    context_args: dict[str, Any] | str | None = _help(
        None,
        "Settings of the method's contexts by task or environment: {search: {sources: [hindsight]}}; of sources, "
        "with_feedback, allow_leaks, demonstrations and keep_thinking.",
    )
    method_args: dict[str, Any] | str | None = _help(None, "Settings of the method, e.g. {credit: mean}.")
    expert: str | None = _help(
        None, "The teacher instead of the policy itself: a hub id or directory, or a server's http://.../v1."
    )
    expert_args: dict[str, Any] | str | None = _help(
        None, "How the expert is queried, e.g. {gives: samples, samples: 4, share: 0.25}."
    )
    expert_on_failure: str = _help(
        "skip",
        "Where a server fails: skip the rollout's distillation, use the policy as its teacher (self), or pause until it answers.",
    )
    replay_capacity: int | None = _help(None, "Past rollouts kept with their teacher's values and learned from again.")
    replay_share: float = _help(0.5, "Past rollouts learned from for each fresh one.")
    replay_limit: float = _help(2.0, "Largest importance weight of a past state.")
    teacher: str | None = _help(None, "live, frozen, ema, sync or trust_region; the method's own unless given.")
    teacher_rate: float | None = _help(None, "EMA rate per optimizer step; the method's own unless given.")
    teacher_sync_steps: int | None = _help(None, "Optimizer steps between the copies of `teacher: sync`.")
    teacher_base_weight: float = _help(
        0.95,
        "Share of the first weights in the logits of `teacher: trust_region`; SDPO's released code gives the live ones "
        "its teacher rate, 0.05.",
    )
    teacher_dtype: str | None = _help(
        None, "float32 or bfloat16: of a teacher's own weights; the student's unless given."
    )
    teacher_device: str | None = _help(
        None, "cpu: keep a teacher's own weights there between its forwards, where a GPU has no room for them."
    )
    teacher_freeze_below: float | None = _help(
        None, "Freeze an EMA or synced teacher once its own accuracy falls below this share of its best."
    )
    preflight: int = _help(
        8, "Problems on which training first looks whether its teacher is worth listening to; 0: do not."
    )
    guard: str = _help(
        "warn",
        "What happens at signs of collapse: none, warn, freeze (the teacher), reward (the rewards alone count), stop, or best "
        "(end with the best evaluation's policy).",
    )
    context_template: dict[str, Any] | str | None = _help(
        None,
        "Wording of a teacher's prompt: sdpo, opsd, house, a .jinja file or Jinja text; or one for each task, "
        "{rulebook: house, livecodebench: my.jinja}; the method's own unless given.",
    )
    max_teacher_prompt_length: int | None = _help(
        None, "Longest teacher prompt in tokens, what the model can read unless given; shown texts lose their middle."
    )
    padding_free: bool = _help(
        True,
        "Compute no padding of long ragged batches: one row of all tokens with flash attention, else groups of similar length "
        "(not under FSDP or DeepSpeed).",
    )
    strict: bool = _help(True, "Stop at a row that cannot be used; false: leave such rows out and say how many.")

    eval_task: str | None = _help(None, "Task to evaluate on; `task` unless given.")
    eval_split: str = _help("test", "Split to evaluate on.")
    eval_problems: int | None = _help(None, "Evaluate on the first so many problems; all unless given.")
    eval_k: int = _help(8, "Completions per problem in an evaluation.")
    eval_temperature: float | None = _help(None, "Temperature of evaluation; `temperature` unless given.")
    eval_top_p: float | None = _help(None, "top_p of evaluation; `top_p` unless given.")
    eval_batch_size: int = _help(256, "Completions generated at a time in an evaluation.")
    eval_teacher_problems: int = _help(32, "Problems on which the teacher's own accuracy is measured; 0: do not.")

    rollouts_saved: int = _help(4, "Rollouts per logged step written to rollouts.jsonl with their per-token signals.")
    rollouts_max_mb: float = _help(
        1000.0, "Largest size of rollouts.jsonl; where it would be larger, only evenly spaced steps are written to it."
    )
    overwrite: bool = _help(False, "Replace an existing run of the same name.")

    # Defaults that differ from TRL's, and why.
    output_dir: str | None = _help(None, "The run directory; runs/NAME unless given.")
    bf16: bool | None = _help(None, "bfloat16 mixed precision; on unless fp16 where there is a GPU, else off.")
    scale_rewards: str = _help(
        "none", "No division by the group's deviation: the baseline of the papers followed here."
    )
    epsilon_high: float | None = _help(0.28, "Upper clip of the surrogate (DAPO, arXiv 2503.14476).")
    logging_steps: float = _help(1, "Log every step: health must be visible.")
    # None first, as transformers' argument parser wants it.
    report_to: None | str | list[str] = _help("none", "Further trackers: trackio, tensorboard, wandb.")  # noqa: RUF036
    disable_tqdm: bool | None = _help(True, "errata shows a progress bar of its own.")
    save_strategy: str = _help("steps", "When to write checkpoints.")
    save_steps: float = _help(50, "Optimizer steps between checkpoints.")
    save_total_limit: int | None = _help(2, "Checkpoints kept.")

    def __post_init__(self) -> None:
        self._check_each()
        if self.output_dir is None:
            self.output_dir = self.default_output_dir()
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and not torch.accelerator.is_available():
            self.use_cpu = (
                True  # without it accelerate looks for a GPU, finds none, and every process takes itself for the first
            )
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
            # TRL's default is bfloat16 everywhere; on a CPU it is slower.
            self.bf16 = bool(self.bf16)
        # TRL checks that a batch of its own evaluation holds whole groups; ours generates by itself.
        self.num_generations_eval = self.eval_k
        self.per_device_eval_batch_size = max(self.eval_batch_size // self.eval_k, 1) * self.eval_k
        super().__post_init__()
        if self.world_size != processes:
            raise ValueError(
                f"use_cpu: {processes} processes were started, but on this machine's accelerator each of them would train "
                "alone and write the same files; set use_cpu: true, or start one process"
            )
        if self.correction is not None and self.critic is not None:
            raise ValueError("critic: a critique would replace what correction says; leave out one of the two")

    def default_output_dir(self) -> str:
        """The run directory where none is named: of ``run_name``, else of the task and the method."""
        return "runs/" + (self.run_name or f"{(self.task or 'run').replace('/', '-')}-{self.method.split(':')[-1]}")

    def _check_each(self) -> None:
        """Check every setting against ``RULES``, else against its type."""
        hints = hints_of(ErrataConfig)
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _MAPPINGS:
                check(f.name, value, dict[str, Any] | None)
            elif f.name in ("tasks", "environment"):
                setattr(self, f.name, _of_text(f.name, value))
            elif f.name == "context_template":
                self.context_template = None if value is None else _template(value)
            elif f.name in RULES:
                check(f.name, value, RULES[f.name])
            elif f.name in ErrataConfig.__annotations__ or is_plain(hints[f.name]):
                check(f.name, value, hints[f.name])


_MAPPINGS = ("method_args", "task_args", "expert_args", "verifiers", "context_args", "columns")
"""Declared as mapping or text for TRL's parser, which makes a mapping of the text."""


def _of_text(name: str, given: Any) -> Any:
    """What is written as YAML on the command line, ``{a: file.py:A}`` or ``[{name: math}]``; other texts as they are."""
    if not isinstance(given, str) or given[:1] not in ("{", "["):
        return given
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: neither a name nor YAML: {given!r}") from error


def _template(given: Any) -> str | dict[str, Any]:
    """One template, or one for each task; on the command line a mapping is written as YAML."""
    if isinstance(given, str) and given.startswith("{") and given[1:2] not in ("{", "%", "#"):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ValueError(f"context_template: neither Jinja nor a mapping: {given!r}") from error
    if isinstance(given, str) or (isinstance(given, dict) and all(isinstance(v, str) for v in given.values())):
        return given
    raise ValueError(f"context_template: must be a template, or a mapping from tasks to templates, got {given!r}")
