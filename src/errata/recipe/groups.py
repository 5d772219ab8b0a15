"""Every setting of a recipe by group, with its default, what it may be and what it means: what ``errata train --help`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from transformers import TrainingArguments
from trl import DatasetMixtureConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from errata.recipe.config import ErrataConfig
from errata.recipe.settings import RULES
from errata.validate import hints_of, wanted

REST = "Others of TRL and transformers"
GROUPS: dict[str, tuple[str, ...]] = {
    "Policy": (
        *("model", "model_name_or_path", "model_revision", "dtype", "attn_implementation", "trust_remote_code"),
        *("model_init_kwargs", "chat_template_kwargs", "router_aux_loss_coef"),
    ),
    "LoRA and quantization": (
        *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
        *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit"),
        *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
    ),
    "Tasks and rows": (
        *("task", "task_path", "task_args", "tasks", "dataset_name", "dataset_config", "dataset_train_split"),
        *("dataset_test_split", "datasets", "columns", "prompt_format", "strict", "shuffle_dataset"),
    ),
    "Verifiers and feedback": (
        *("verifier", "verifiers", "verifier_timeout_s", "verifier_isolation", "reward_funcs", "reward_weights"),
        *("reward_model_name_or_path", "correction", "critic", "critic_template", "critic_max_tokens"),
    ),
    "Tools and environments": (
        *("tools", "environment", "environment_timeout_s", "max_tool_calling_iterations"),
    ),
    "Method": (
        *("method", "method_args", "context_args", "context_template", "max_teacher_prompt_length", "preflight"),
        "guard",
    ),
    "Teacher": (
        *("teacher", "teacher_rate", "teacher_sync_steps", "teacher_base_weight", "teacher_dtype", "teacher_device"),
        *("teacher_freeze_below", "expert", "expert_args", "expert_on_failure"),
    ),
    "Past rollouts": ("replay_capacity", "replay_share", "replay_limit"),
    "Rollouts": (
        *("num_generations", "per_device_train_batch_size", "generation_batch_size", "steps_per_generation"),
        *("max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("generation_kwargs", "mask_truncated_completions", "use_vllm", "vllm_mode", "vllm_server_base_url"),
        *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
    ),
    "Loss": (
        *("loss_type", "beta", "epsilon", "epsilon_high", "delta", "scale_rewards", "importance_sampling_level"),
        *("top_entropy_quantile", "vllm_importance_sampling_correction"),
    ),
    "Optimizer": (
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"),
        *("num_train_epochs", "num_iterations", "gradient_accumulation_steps", "max_grad_norm", "weight_decay"),
        *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed"),
    ),
    "Memory and precision": (
        *("bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "padding_free"),
        *("use_liger_kernel", "torch_compile", "use_cpu"),
    ),
    "Many processes": ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "ddp_backend", "ddp_timeout"),
    "Evaluation": (
        *("eval_strategy", "eval_steps", "eval_on_start", "eval_task", "eval_split", "eval_dataset_name"),
        *("eval_problems", "eval_k", "eval_temperature", "eval_top_p", "eval_batch_size", "eval_teacher_problems"),
    ),
    "The run directory, trackers and the hub": (
        *("run_name", "output_dir", "overwrite", "resume_from_checkpoint", "rollouts_saved", "rollouts_max_mb"),
        *("logging_steps", "save_strategy", "save_steps", "save_total_limit", "report_to", "push_to_hub"),
        *("hub_model_id", "hub_private_repo", "disable_tqdm"),
    ),
}  # fmt: skip
"""The settings that a user may want, in the order in which a recipe is written. All others are in ``REST``."""
_KINDS = (ErrataConfig, ModelConfig, GRPOScriptArguments, DatasetMixtureConfig)


@dataclass(frozen=True)
class Setting:
    """One key of a recipe, which is also a flag of ``errata train``."""

    name: str
    default: Any
    must_be: str
    """In words, e.g. ``a number in [0, 1]``; empty where a library checks it."""
    meaning: str
    origin: str
    """The library that explains it: ``errata``, ``TRL`` or ``transformers``."""


def settings() -> dict[str, list[Setting]]:
    """All settings by group; each is in one group."""
    found = {s.name: s for s in _all()}
    grouped = {title: [found.pop(name) for name in names] for title, names in GROUPS.items()}
    return {**grouped, REST: list(found.values())}


def _all() -> Iterator[Setting]:
    trainings = {f.name: f for f in fields(TrainingArguments)}
    for kind in _KINDS:
        hints = hints_of(kind)
        for f in fields(kind):
            if not f.init:
                continue
            own = kind is ErrataConfig and f.name in ErrataConfig.__annotations__
            origin = "errata" if own else "transformers" if _same(f, trainings.get(f.name)) else "TRL"
            hint = RULES.get(f.name, hints.get(f.name) if own else Any)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            meaning = " ".join(str(f.metadata.get("help") or "").split())
            yield Setting(f.name, None if default is MISSING else default, wanted(hint), meaning, origin)


def _same(one: Field[Any], other: Field[Any] | None) -> bool:
    """Whether a subclass has taken a setting over with its explanation."""
    return other is not None and one.metadata.get("help") == other.metadata.get("help")
