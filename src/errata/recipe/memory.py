"""What a run needs of each GPU's memory, computed before anything is loaded.

``Shape`` holds a model's sizes, ``Load`` what one process holds and computes, ``estimate`` the bytes of each part and of each
phase of a step. The formulas are in docs/scale.md, with the peaks that were measured beside them.

Not in it: the CUDA context, the collective operations' buffers and fragmentation (``RESERVE``), and images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from errata.validate import check

Engine = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
Kind = Literal["none", "live", "frozen", "ema", "sync", "trust_region", "local", "server"]
RESERVE = 0.1
"""Share of a GPU's memory that an estimate leaves free."""
TILE = 2 << 30
"""Bytes of the score op's largest tile on a GPU (``errata.ops.fused.workspace``)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a causal language model with attention and a gated MLP."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP; of a mixture, of all experts that one token uses."""
    queries: int
    """Heads times their size."""
    keys: int
    """Key-value heads times their size."""
    vocabulary: int
    tied: bool
    """Whether the output embedding is the input embedding."""

    @property
    def embedding(self) -> int:
        """Parameters of one embedding."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return (self.parameters - self.embedding * (1 if self.tied else 2)) // max(self.layers, 1)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one process of a run holds and computes. Sizes in bytes are of one number."""

    gpus: int = 1
    engine: Engine = "ddp"
    weight_bytes: int = 4
    """Of the policy's weights as the recipe loads them."""
    mixed: bool = False
    """bfloat16 mixed precision."""
    adapter: int | None = None
    """Parameters of a LoRA adapter; ``None``: all weights are trained."""
    optimizer_bytes: float = 8
    """Optimizer state of one parameter in float32: 8 for AdamW. Where weights are 2 bytes, so is each part of the state."""

    rows: int = 8
    """Rollouts of a micro-batch on one process."""
    generation_rows: int = 8
    """Rollouts of a generation batch on one process."""
    prompt: int = 512
    completion: int = 512
    teacher_prompt: int = 1024
    """Tokens, the longest of each."""
    accumulates: bool = False
    """Whether gradients of earlier micro-batches are kept while a micro-batch is computed."""
    checkpointing: bool = True
    flash: bool = False
    """Whether attention needs no mask of (rows, tokens, tokens)."""
    tile: int = TILE

    teacher: Kind = "none"
    """The policy's own kinds, ``local`` (another model), ``server``, or ``none``."""
    teacher_bytes: int = 4
    teacher_parameters: int = 0
    """Of another model as teacher."""
    teacher_offloaded: bool = False
    top_k: int = 20
    """Values at each state that a server gives."""

    vllm: float = 0.0
    """Share of the GPU's memory that a colocated vLLM keeps."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU."""

    parts: dict[str, float]
    """What each thing needs, however long it lives."""
    phases: dict[str, float]
    """The sum of what is there at once, for each phase of a step."""

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])


def estimate(shape: Shape, load: Load, memory: float = 0.0) -> Estimate:
    """The bytes that a run needs on each GPU of ``memory`` bytes (which only a colocated vLLM's share depends on).

    Raises ``ValueError`` naming an unknown engine or teacher.
    """
    check("engine", load.engine, Engine)
    check("teacher", load.teacher, Kind)
    s, w = shape, max(load.gpus, 1)
    p, lora = s.parameters, load.adapter is not None
    trained = load.adapter if load.adapter is not None else p
    fsdp, zero3 = load.engine == "fsdp" and w > 1, load.engine == "zero3"
    gathers = fsdp or zero3
    # FSDP trains float32 copies of the trained weights under mixed precision, whatever type they were loaded in.
    own = 4 if fsdp and load.mixed else load.weight_bytes
    compute = 2 if load.mixed or load.weight_bytes == 2 else 4
    residual = 2 if gathers and load.mixed else load.weight_bytes

    parts: dict[str, float] = {}
    frozen_weights = (p if lora else 0) * load.weight_bytes
    parts["weights"] = (frozen_weights + trained * own) / (w if gathers else 1)
    deepspeed = load.engine.startswith("zero")
    parts["gradients"] = trained * own / (w if load.engine in ("fsdp", "zero2", "zero3") else 1)
    # AdamW's state has the weights' type; DeepSpeed keeps float32 masters and states for weights of 2 bytes.
    state = load.optimizer_bytes * (own / 4)
    if deepspeed and own == 2:
        state = 4 + load.optimizer_bytes
    parts["optimizer"] = trained * state / (w if load.engine != "ddp" else 1)
    parts["communication buckets"] = trained * own if load.engine == "ddp" and w > 1 else 0.0
    two_layers = 2 * s.layer * compute
    parts["gathered weights"] = (two_layers + s.embedding * (1 if s.tied else 2) * compute) if gathers else 0.0
    # Autocast keeps a rounded copy of every float32 weight from the forward pass to the end of the backward pass.
    parts["autocast copies"] = p * 2 if load.mixed and load.weight_bytes == 4 and not gathers else 0.0

    if load.teacher in ("frozen", "ema", "sync", "trust_region"):
        own_copy = 0 if lora and load.teacher in ("frozen", "trust_region") else trained if lora else p
        parts["teacher weights"] = own_copy * load.teacher_bytes / (w if gathers else 1)
    elif load.teacher == "local":
        parts["teacher weights"] = load.teacher_parameters * load.teacher_bytes / (w if gathers else 1)
    else:
        parts["teacher weights"] = 0.0
    width = 2 * s.hidden if load.teacher == "trust_region" else s.hidden
    if load.teacher == "server":
        parts["teacher values"] = load.generation_rows * load.completion * load.top_k * 12
    elif load.teacher == "none":
        parts["teacher values"] = 0.0
    else:
        kept = load.generation_rows + load.rows  # of the generation batch, and padded for the micro-batch
        parts["teacher values"] = kept * load.completion * width * residual

    tokens = load.rows * (load.prompt + load.completion)
    one_layer = tokens * _layer_bytes(s, compute)
    between = tokens * s.hidden * residual
    last = tokens * s.hidden * (4 + 2 * compute)  # the final norm
    parts["activations"] = (
        s.layers * between + one_layer if load.checkpointing else s.layers * one_layer + between
    ) + last
    length = load.prompt + load.completion
    parts["attention mask"] = 0.0 if load.flash else load.rows * length**2 * (1 + compute)
    scored = load.rows * load.completion
    dhead = 0 if lora else s.embedding * (4 if compute == 4 else 6)
    columns = 1 if load.teacher in ("none", "server") else 3 if load.teacher == "trust_region" else 2
    tile = min(load.tile, scored * s.vocabulary * 4 * columns)
    heads = s.embedding * 2 * compute if load.teacher == "trust_region" else 0
    parts["scores: head's gradient"] = dhead
    parts["scores: tile, rows, heads"] = tile + scored * 10 * s.hidden + heads
    parts["vLLM"] = load.vllm * memory

    offloaded = parts["teacher weights"] if load.teacher_offloaded else 0.0
    always = parts["weights"] + parts["optimizer"] + parts["teacher weights"] - offloaded + parts["vLLM"]
    always += parts["communication buckets"]
    held = parts["gradients"] if load.accumulates else 0.0
    scores = parts["scores: head's gradient"] + parts["scores: tile, rows, heads"]
    # A tied embedding's gradient has a second part, from the first layer; both and their sum exist for a moment.
    embedding = 0 if lora else s.embedding * own * (2 if s.tied else 1)
    phases = {
        "loss": always
        + held
        + parts["autocast copies"]
        + parts["gathered weights"]
        + parts["teacher values"]
        + parts["activations"]
        + parts["attention mask"]
        + scores,
        "end of the backward pass": always
        + parts["gradients"]
        + parts["autocast copies"]
        + parts["gathered weights"]
        + parts["teacher values"]
        + one_layer  # the first one's
        + embedding,
        "optimizer step": always + parts["gradients"],
    }
    if load.teacher not in ("none", "server"):
        teacher_tokens = load.rows * (load.teacher_prompt + load.completion)
        forward = teacher_tokens * (2 * s.hidden * residual + _layer_bytes(s, compute) / 2)
        mask = 0.0 if load.flash else load.rows * (load.teacher_prompt + load.completion) ** 2 * (1 + compute)
        phases["teacher's forward pass"] = (
            always + held + offloaded + parts["gathered weights"] + parts["teacher values"] + forward + mask
        )
    return Estimate(parts, phases)


def _layer_bytes(s: Shape, compute: int) -> float:
    """Bytes for each token that one layer keeps for its backward pass, with flash or memory-efficient attention.

    Two norms keep their input in float32, normalised and scaled; query and key norms likewise; attention its inputs and
    output; the MLP four tensors of its width.
    """
    norms = 2 * s.hidden * (4 + 2 * compute) + (s.queries + s.keys) * (4 + compute)
    attention = (3 * s.queries + 2 * s.keys) * compute
    return float(norms + attention + 4 * s.intermediate * compute)


def key_value_bytes(shape: Shape) -> int:
    """Bytes of an inference engine's cache for each token, in bfloat16."""
    return 2 * shape.layers * shape.keys * 2


def mends(shape: Shape, load: Load, memory: float, limit: float) -> list[tuple[str, float]]:
    """Changes of a run that does not fit, with the peak each leads to; those that fit ``limit`` bytes."""
    tried: list[tuple[str, dict[str, Any]]] = []
    if not load.checkpointing:
        tried.append(("gradient_checkpointing: true", {"checkpointing": True}))
    if load.rows > 1:
        tried.append((f"per_device_train_batch_size: {load.rows // 2}", {"rows": load.rows // 2}))
    if load.weight_bytes == 4:
        tried.append(("dtype: bfloat16", {"weight_bytes": 2, "teacher_bytes": 2}))
    if load.gpus > 1 and load.engine in ("ddp", "zero1", "zero2"):
        tried.append(("FSDP", {"engine": "fsdp"}))
    if load.teacher in ("frozen", "ema", "sync") and not load.teacher_offloaded and load.engine == "ddp":
        tried.append(("teacher_device: cpu", {"teacher_offloaded": True}))
    if load.vllm:
        tried.append(("vllm_mode: server", {"vllm": 0.0}))
    if load.adapter is None:
        tried.append(("use_peft: true", {"adapter": shape.parameters // 100}))
    found = []
    for words, change in tried:
        peak = estimate(shape, replace(load, **change), memory).peak
        if peak <= limit:
            found.append((words, peak))
    return found
