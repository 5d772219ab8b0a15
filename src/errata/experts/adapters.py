"""PEFT adapters of a policy: which kinds errata can train, and a copy of one as a teacher's own weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from errata.experts.sharding import gathered

if TYPE_CHECKING:
    from peft import PeftModel

TEACHER = "teacher"
"""Name of the adapter that holds the teacher's weights."""


def check_adapter(model: Any, *, reference: bool = False) -> None:
    """Look at a policy's adapter, if it has one, before any compute is spent.

    Args:
        reference: whether TRL will copy the adapter as its reference model (``beta``).
    Raises:
        ValueError: for an adapter that adds tokens to the prompt (prompt tuning and its kind), several active ones, or one
            that Transformers loaded without PEFT's wrapper; a reference of one that TRL does not find.
    """
    if not hasattr(model, "peft_config"):
        return
    if not hasattr(model, "get_base_model"):
        raise ValueError(
            "model: its adapter was loaded by Transformers, which does not train it; load the policy with "
            "peft.AutoPeftModelForCausalLM.from_pretrained(PATH, is_trainable=True), or give the path as --model"
        )
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"model: has {len(active)} active adapters ({', '.join(active)}), and errata trains one; call set_adapter, or merge "
            "the others into the model"
        )
    config = model.peft_config[active[0]]
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"peft_config: {config.peft_type.value} puts trained vectors before the prompt, which errata's scores do not see; "
            "use LoRA"
        )
    if reference and active[0] != "default":
        raise ValueError(
            f"beta: TRL makes its reference of the adapter called 'default', and this one is called {active[0]!r}; load it as "
            "'default', or set beta: 0"
        )


def active_adapter(model: PeftModel) -> str:
    """The name of the adapter that is trained."""
    return str(model.active_adapters[0])


def of_adapter(name: str, adapter: str) -> bool:
    """Whether a parameter called ``name`` belongs to the adapter."""
    return adapter in name.split(".")


def changes_nothing(model: PeftModel, adapter: str) -> bool:
    """Whether the model with the adapter is the model without it, as with a new LoRA adapter.

    False where that cannot be seen from the weights alone.
    """
    named = dict(model.named_parameters(remove_duplicate=False))  # an embedding may be tied
    for name, value in named.items():
        if not of_adapter(name, adapter) or "lora_A" in name or "lora_embedding_A" in name:
            continue
        if "lora_B" in name or "lora_embedding_B" in name:
            if bool(gathered(value).any()):
                return False
        elif f"modules_to_save.{adapter}" in name:
            original = named[name.replace(f"modules_to_save.{adapter}", "original_module")]
            if not gathered(value).equal(gathered(original).to(value.dtype)):
                return False
        else:
            return False
    return True


def check_alone(model: PeftModel) -> None:
    """Raise ``ValueError`` where weights outside the adapter are trained too: every adapter of the model shares them."""
    active = active_adapter(model)
    outside = [n for n, p in model.named_parameters() if p.requires_grad and not of_adapter(n, active)]
    if outside:
        raise ValueError(
            f"peft_config: {outside[0]!r} is trained beside the adapter (bias: all and lora_only do that), so a teacher that "
            "shares the model would change with it; set bias: none, or use teacher: live"
        )


def add_copy(model: PeftModel) -> str:
    """Add a copy of the active adapter that is never trained, and return its name."""
    active, name = active_adapter(model), TEACHER
    while name in model.peft_config:
        name += "_"
    config = copy.copy(model.peft_config[active])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others (PiSSA, OLoRA) would change the base model
    model.add_adapter(name, config)
    for copied, original in pairs(model, active, name):
        copied.data.copy_(original.data)
    model.set_adapter(active)
    freeze(model, name)
    return name


def pairs(model: PeftModel, source: str, target: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(target, source) of every parameter that two adapters have."""
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if of_adapter(name, source):
            counterpart = ".".join(target if part == source else part for part in name.split("."))
            yield named[counterpart], parameter


@contextmanager
def switched(model: PeftModel, name: str) -> Iterator[None]:
    """A context in which another adapter than the trained one is active."""
    active = active_adapter(model)
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(active)
        freeze(model, name)


def freeze(model: PeftModel, adapter: str) -> None:
    """Take an adapter's parameters out of the optimizer's sight; ``set_adapter`` makes the one it activates trainable."""
    for name, parameter in model.named_parameters():
        if of_adapter(name, adapter):
            parameter.requires_grad_(False)
