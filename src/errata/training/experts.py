"""Whoever marks, as a recipe names it: the policy itself, another model on this machine, a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from errata import methods
from errata.experts import SelfTeacher, Teacher
from errata.experts.access import GIVES, Access
from errata.methods import Method
from errata.training.config import ErrataConfig
from errata.training.sources import mapping, model_path

Prepare = Callable[[Any], Any]
MakeExpert = Callable[[Prepare], Any]
"""Given what prepares a model for the run's parallelism -> a ``Teacher``, or whatever answers ``Question``s."""

CACHE = "expert_cache.sqlite"


def expert_of(config: ErrataConfig, method: Method, tokenizer: Any) -> tuple[MakeExpert | None, Access]:
    """The expert of a recipe's ``expert`` and ``expert_args``, and how it is asked; ``None``: the policy is its own.

    Raises ``ValueError`` naming the setting, for an expert that gives less than the method needs with the methods that would
    work, and for one that cannot be had.
    """
    own, others = Access.split(mapping(config.expert_args))
    remote = config.expert is not None and config.expert.startswith(("http://", "https://"))
    if remote:
        own.setdefault("gives", "samples")
    access = Access(**own)
    if not method.uses_teacher:
        if config.expert is not None:
            raise ValueError(f"expert: method {config.method} asks nobody; use another method or leave it out")
        return None, access
    _enough(config, method, access)
    if config.expert is None:
        if others:
            raise ValueError(
                f"expert_args: {sorted(others)[0]!r} is for another expert than the policy; name one with expert"
            )
        if "expert" in method.sources:
            raise ValueError(
                "sources: 'expert' is shown nothing, and the policy shown nothing has nothing to teach; name an expert"
            )
        return None, access
    if config.expert_on_failure == "self" and not remote:
        raise ValueError("expert_on_failure: self is for a server, which may fail")
    return (_server if remote else _local)(config, access, others, tokenizer), access


def self_teacher(trainer: Any, prepare: Prepare) -> Teacher:
    """The policy as its own teacher, as the recipe and the method say."""
    args, kind = trainer.args, trainer.args.teacher or trainer.method.teacher
    if args.teacher_device is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError("teacher_device: FSDP and DeepSpeed keep a teacher where they shard it; leave it out")
    if args.teacher_freeze_below is not None and kind not in ("ema", "sync"):
        raise ValueError(f"teacher_freeze_below: a {kind} teacher follows no one; use teacher: ema or sync")
    batch, steps = trainer.args.steps_per_generation * trainer.num_iterations, args.teacher_sync_steps or 0
    if kind == "sync" and steps * args.gradient_accumulation_steps % batch:
        raise ValueError(
            f"teacher_sync_steps: {steps} would change the teacher within a generation batch, which lasts "
            f"{batch} micro-batches ({args.gradient_accumulation_steps} a step); give a multiple"
        )
    return SelfTeacher(
        trainer.model,
        kind,
        trainer.method.teacher_rate if args.teacher_rate is None else args.teacher_rate,
        prepare,
        sync_steps=args.teacher_sync_steps,
        base_weight=args.teacher_base_weight,
        dtype=None if args.teacher_dtype is None else getattr(torch, args.teacher_dtype),
        device=args.teacher_device,
        seed=args.seed,
    )


def _enough(config: ErrataConfig, method: Method, access: Access) -> None:
    least, why = method.least_answer()
    if GIVES.index(access.gives) >= GIVES.index(least):
        return
    able = [n for n in methods.names() if _works(n, access)]
    if "distil" not in able:
        able.append("distil with method_args: {cost: ce}")
    raise ValueError(
        f"expert_args: gives: {access.gives} is less than method {config.method} needs ({least}): {why}; "
        f"methods that would work: {', '.join(able)}"
    )


def _works(name: str, access: Access) -> bool:
    method = methods.get(name)
    return method.uses_teacher and GIVES.index(access.gives) >= GIVES.index(method.least_answer()[0])


def _server(config: ErrataConfig, access: Access, others: dict[str, Any], tokenizer: Any) -> MakeExpert:
    from errata.experts.remote.server import ServerExpert

    if access.gives == "full":
        raise ValueError("expert_args: gives: full cannot be had of a server; use topk (vLLM) or samples")
    if "model" not in others:
        raise ValueError("expert_args: model is missing, the model's name on the server")
    if "on_failure" in others:
        raise ValueError("expert_args: on_failure is the recipe's expert_on_failure: skip, self or pause")
    settings = {"cache": str(Path(str(config.output_dir)) / CACHE), **others}
    settings |= {"gives": access.gives, "top_k": access.top_k, "samples": access.samples}
    settings["on_failure"] = "pause" if config.expert_on_failure == "pause" else "skip"
    expert = _named(lambda: ServerExpert(str(config.expert), settings.pop("model"), tokenizer, **settings))
    expert.check()
    return lambda prepare: expert


def _local(config: ErrataConfig, access: Access, others: dict[str, Any], tokenizer: Any) -> MakeExpert:
    from errata.experts.local import LocalExpert, LocalSampler

    path = model_path(str(config.expert))
    others.setdefault("trust_remote_code", config.trust_remote_code)
    try:
        expert: Any = _named(lambda: LocalExpert(path, tokenizer, **others))
    except ValueError:
        if access.gives != "samples":
            raise
        # Another tokenizer: it is known by the text it writes.
        sampler = _named(lambda: LocalSampler(path, tokenizer, draws=access.samples, **others))
        return lambda prepare: sampler
    return expert.prepared_by  # type: ignore[no-any-return]


def _named(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"expert_args: {str(error).rpartition(' got an ')[2] or error}") from error
    except OSError as error:
        raise ValueError(f"expert: {str(error).splitlines()[0]}") from error
