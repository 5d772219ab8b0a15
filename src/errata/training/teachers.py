"""The policy as its own teacher, as the recipe and the method say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from errata.experts import SelfTeacher, Teacher
from errata.methods import TeacherMethod
from errata.recipe.config import ErrataConfig
from errata.training.teacher_pass import Expert

Prepare = Callable[[nn.Module], nn.Module]
"""Prepares a separate model for the run's parallelism."""
MakeTeacher = Callable[[Prepare], Teacher | Expert]
"""Returns a ``Teacher``, or an ``Expert`` that answers queries."""


def self_teacher(
    model: nn.Module,
    config: ErrataConfig,
    method: TeacherMethod,
    prepare: Prepare,
    micro_batches: int,
    sharded: bool,
) -> Teacher:
    """A ``SelfTeacher`` of the recipe's kind, or the method's where the recipe names none.

    Args:
        model: the student, unwrapped.
        micro_batches: that a generation batch serves.
        sharded: whether FSDP or DeepSpeed shards the weights.
    Raises:
        ValueError: settings that contradict each other.
    """
    kind = config.teacher or method.teacher
    if config.teacher_device is not None and sharded:
        raise ValueError("teacher_device: FSDP and DeepSpeed keep a teacher where they shard it; leave it out")
    if config.teacher_freeze_below is not None and kind not in ("ema", "sync"):
        raise ValueError(
            f"teacher_freeze_below: a {kind} teacher does not follow the student; use teacher: ema or sync"
        )
    steps = config.teacher_sync_steps or 0
    if kind == "sync" and steps * config.gradient_accumulation_steps % micro_batches:
        raise ValueError(
            f"teacher_sync_steps: {steps} would change the teacher within a generation batch, which lasts "
            f"{micro_batches} micro-batches ({config.gradient_accumulation_steps} a step); give a multiple"
        )
    return SelfTeacher(
        model,
        kind,
        method.teacher_rate if config.teacher_rate is None else config.teacher_rate,
        prepare,
        sync_steps=config.teacher_sync_steps,
        base_weight=config.teacher_base_weight,
        dtype=None if config.teacher_dtype is None else getattr(torch, config.teacher_dtype),
        device=config.teacher_device,
        seed=config.seed,
    )
