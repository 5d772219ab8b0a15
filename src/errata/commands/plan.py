"""``errata plan``: what a recipe's run needs of each GPU's memory, and how its batches divide into groups."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl import get_peft_config

from errata.methods import TeacherMethod
from errata.recipe.build import method_of
from errata.recipe.config import mapping
from errata.recipe.memory import RESERVE, Engine, Estimate, Kind, Load, Shape, estimate, key_value_bytes, mends
from errata.recipe.models import model_path, one_line
from errata.recipe.read import Recipe, recipe_of
from errata.recipe.text import load_mapping

GB = 1e9
_BATCHES = ("steps_per_generation", "generation_batch_size")
_DOES_NOT_FIT = 1
"""Exit status."""


def plan(
    path: str, overrides: Sequence[str], *, gpus: int, memory: float, engine: Engine | None, prompt_tokens: int
) -> int:
    """Print the estimate of a recipe on ``gpus`` GPUs of ``memory`` GB each. Returns 1 where it cannot fit, else 0.

    Args:
        engine: how weights are shared; FSDP on several GPUs unless given.
        prompt_tokens: the longest prompt, which a recipe does not say.
    Raises:
        ValueError: a bad recipe, one whose batches hold no whole groups on so many GPUs, or a model whose config cannot be read.
    """
    if gpus < 1 or memory <= 0 or prompt_tokens < 1:
        raise ValueError(
            f"--gpus {gpus}, --memory {memory:g} and --prompt_tokens {prompt_tokens}: each must be above 0"
        )
    recipe = on_gpus(path, overrides, gpus)
    model = empty_model(str(recipe.config.model), recipe.config.trust_remote_code)
    load = load_of(recipe, model, gpus, engine or ("fsdp" if gpus > 1 else "ddp"), prompt_tokens)
    shape = shape_of(model)
    found = estimate(shape, load, memory * GB)
    print("\n".join(_described(path, recipe, shape, load, memory)))
    print("\n".join(_table(found, memory)))
    limit = memory * GB * (1 - RESERVE)
    warnings = _vllm_warnings(recipe, shape, load, gpus, memory)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if found.peak <= limit:
        return _DOES_NOT_FIT if any("cannot start" in line for line in warnings) else 0
    print(
        f"warning: this run cannot fit: {found.phase} needs {found.peak / GB:.1f} GB, and {limit / GB:.1f} GB of "
        f"{memory:g} GB are left beside CUDA's own and fragmentation",
        file=sys.stderr,
    )
    for words, peak in mends(shape, load, memory * GB, limit):
        print(f"         with {words} it needs {peak / GB:.1f} GB", file=sys.stderr)
    return _DOES_NOT_FIT


def on_gpus(path: str, overrides: Sequence[str], gpus: int) -> Recipe:
    """The recipe as ``gpus`` processes with a GPU each read it; TRL checks that their batches hold whole groups.

    Its config is of a single process; ``generation_batch_size`` is that of all of them.
    """
    settings = load_mapping(Path(path))
    on_gpu = settings.pop("on_gpu", None) or {}
    settings |= on_gpu
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    pairs = {words[i].removeprefix("--"): words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}

    def number(name: str, default: int) -> int:
        value = pairs.get(name, settings.get(name))
        try:
            return default if value is None else int(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: must be a whole number, got {value!r}") from None

    rows = number("per_device_train_batch_size", 8)
    micro_batches = number("steps_per_generation", number("gradient_accumulation_steps", 1))
    sampled = number("generation_batch_size", rows * gpus * micro_batches)
    if sampled % (rows * gpus):
        raise ValueError(
            f"generation_batch_size: {sampled} is not a multiple of {gpus} GPUs x {rows} rollouts; give a multiple"
        )
    for name in _BATCHES:
        settings.pop(name, None)
        if f"--{name}" in words:
            at = words.index(f"--{name}")
            del words[at : at + 2]
    settings |= {"generation_batch_size": sampled, "use_cpu": True}
    if not {"bf16", "fp16"} & {*settings, *pairs}:
        settings["bf16"] = True  # as transformers has it where there is a GPU
    return recipe_of(settings, words, where=path, gpu=True)


def empty_model(name: str, trust_remote_code: bool = False) -> Any:
    """The model without weights, from its ``config.json``. Raises ``ValueError`` where that cannot be read."""
    where = model_path(name)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ValueError(
            f"model: cannot read the config of {name!r}: {one_line(error)}; --model takes a directory with its config.json"
        ) from error


def shape_of(model: Any) -> Shape:
    """The sizes of a model (its weights may be on the ``meta`` device)."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=experts * width if experts and width else config.intermediate_size,
        queries=heads * size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    )


def load_of(recipe: Recipe, model: Any, gpus: int, engine: Engine, prompt_tokens: int) -> Load:
    """What one of ``gpus`` processes holds and computes, by a recipe of ``on_gpus``."""
    config, model_args, method = recipe.config, recipe.model, method_of(recipe)
    weight_bytes = _bytes_of(model_args.dtype or "float32", model)
    adapter = None
    if model_args.use_peft:
        from peft import get_peft_model

        with torch.device("meta"):
            wrapped = get_peft_model(_fresh(model), get_peft_config(model_args))
        adapter = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    teacher, its_bytes, its_parameters, offloaded = _teacher(recipe, method, weight_bytes)
    sampled = config.generation_batch_size // gpus
    answer = config.max_completion_length
    limit = config.max_teacher_prompt_length or prompt_tokens + answer
    return Load(
        gpus=gpus,
        engine=engine,
        weight_bytes=weight_bytes,
        mixed=bool(config.bf16 or config.fp16),
        adapter=adapter,
        optimizer_bytes=_optimizer_bytes(str(getattr(config.optim, "value", config.optim))),
        rows=config.per_device_train_batch_size,
        generation_rows=sampled,
        prompt=prompt_tokens,
        completion=answer,
        teacher_prompt=max(min(limit, prompt_tokens + answer), prompt_tokens),  # the question with a shown answer
        accumulates=config.gradient_accumulation_steps > 1,
        checkpointing=bool(config.gradient_checkpointing),
        flash="flash" in (model_args.attn_implementation or ""),
        teacher=teacher,
        teacher_bytes=its_bytes,
        teacher_parameters=its_parameters,
        teacher_offloaded=offloaded,
        top_k=int(mapping(config.expert_args).get("top_k", 20)),
        vllm=config.vllm_gpu_memory_utilization
        if config.use_vllm and config.vllm_mode == "colocate" and not config.vllm_enable_sleep_mode
        else 0.0,
    )


def _fresh(model: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


def _teacher(recipe: Recipe, method: object, weight_bytes: int) -> tuple[Kind, int, int, bool]:
    """(kind, bytes of a weight, parameters of another model, whether it waits on the CPU)."""
    config, others = recipe.config, mapping(recipe.config.expert_args)
    if not isinstance(method, TeacherMethod):
        return "none", weight_bytes, 0, False
    if config.expert is None:
        kind: Any = config.teacher or method.teacher
        own = {"float32": 4, "bfloat16": 2}.get(config.teacher_dtype or "", weight_bytes)
        return kind, own, 0, config.teacher_device is not None
    if config.expert.startswith(("http://", "https://")):
        return "server", 0, 0, False
    expert = empty_model(config.expert, config.trust_remote_code)
    size = _bytes_of(str(others.get("dtype", "auto")), expert)
    return "local", size, sum(p.numel() for p in expert.parameters()), others.get("device") == "cpu"


def _bytes_of(dtype: str, model: Any) -> int:
    if dtype == "auto":
        dtype = str(getattr(model.config, "dtype", None) or "float32")
    return 4 if "32" in dtype else 2


def _optimizer_bytes(name: str) -> float:
    """Bytes of state for each trained float32 parameter."""
    if "adafactor" in name:
        return 0.1
    if "8bit" in name:
        return 2
    return 8 if "adam" in name or "lamb" in name else 4


def _described(path: str, recipe: Recipe, shape: Shape, load: Load, memory: float) -> list[str]:
    config = recipe.config
    groups = config.generation_batch_size // config.num_generations
    step = load.rows * load.gpus * config.gradient_accumulation_steps
    adapter = "" if load.adapter is None else f", LoRA of {load.adapter / 1e6:.1f} M"
    return [
        f"{path}: {config.model}, {shape.parameters / 1e9:.2f} G parameters{adapter}, method {config.method}, "
        f"teacher {load.teacher}",
        f"{load.gpus} x {memory:g} GB, {load.engine if load.gpus > 1 else 'one process'}, "
        f"{'float32' if load.weight_bytes == 4 else 'bfloat16'} weights"
        f"{', bfloat16 mixed precision' if load.mixed else ''}",
        f"sampled at a time: {groups} problems x {config.num_generations} rollouts; an optimizer step: {step} rollouts; "
        f"a micro-batch: {load.rows} x ({load.prompt} + {load.completion}) tokens on each GPU",
    ]


def _table(found: Estimate, memory: float) -> list[str]:
    lines = ["", f"{'GB on each GPU':34}"]
    lines += [f"  {name:32}{size / GB:8.1f}" for name, size in found.parts.items() if size >= 0.05 * GB]
    lines += ["", "at once, in each phase of a step"]
    lines += [f"  {name:32}{size / GB:8.1f}" for name, size in found.phases.items()]
    lines += ["", f"peak {found.peak / GB:.1f} of {memory:g} GB ({found.peak / memory / GB:.0%}), {found.phase}"]
    return lines


def _vllm_warnings(recipe: Recipe, shape: Shape, load: Load, gpus: int, memory: float) -> list[str]:
    config = recipe.config
    if not config.use_vllm or config.vllm_mode != "colocate":
        return []
    parts = config.vllm_tensor_parallel_size
    if gpus % parts:
        return [f"vLLM cannot start: vllm_tensor_parallel_size {parts} does not divide {gpus} GPUs"]
    room = config.vllm_gpu_memory_utilization * memory * GB - shape.parameters * 2 / parts
    sequence = (load.prompt + load.completion) * key_value_bytes(shape) / parts
    if room < sequence:
        return [
            f"vLLM cannot start: {config.vllm_gpu_memory_utilization:g} of {memory:g} GB hold its weights "
            f"({shape.parameters * 2 / parts / GB:.1f} GB) and no answer of {load.completion} tokens ({sequence / GB:.1f} GB); "
            "raise vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
        ]
    if room < load.generation_rows * sequence:
        fit = int(room // sequence)
        return [
            f"vLLM's cache holds {fit} of {load.generation_rows * parts} answers at a time, so sampling takes turns"
        ]
    return []
