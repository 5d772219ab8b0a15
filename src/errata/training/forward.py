"""Running a model up to its last hidden states, with its head at hand, through whatever wraps it.

DDP and FSDP gather gradients and shards only for what happens inside the wrapped forward. So the work on the head is
handed in as a function: ``model(..., with_head=f)`` returns ``f(hidden, head)``, and nothing of size (B,T,V) is made.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from errata.ops.scores import Head
from errata.training import compat

HeadFunction = Callable[[Tensor, Head], object]
"""(last hidden states (B,L,H), head) -> what the model's forward is to return."""


def accept_head_function(model: PreTrainedModel) -> None:
    """Teach ``model`` (a Hugging Face causal language model, not yet wrapped) the keyword ``with_head``.

    Raises ``ValueError`` for a head that ``head_of`` cannot read.
    """
    head_of(model)
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: PreTrainedModel, *args: object, with_head: HeadFunction | None = None, **kwargs: object
    ) -> object:
        if with_head is None:
            return original(*args, **kwargs)
        outputs = self.base_model(*args, use_cache=False, **kwargs)
        head = head_of(self)
        with compat.gathered(head.weight, head.bias):
            return with_head(outputs.last_hidden_state.to(head.weight.device), head)

    model.forward = types.MethodType(forward, model)


def head_of(model: PreTrainedModel) -> Head:
    """The output embedding of a causal language model with its family's logit scaling and soft-capping.

    Gemma caps (``final_logit_softcapping``); Cohere and others multiply (``logit_scale``, ``lm_head_multiplier``,
    ``output_multiplier``); Granite and MiniCPM divide (``logits_scaling``), HyperCLOVA X multiplies by the same name.
    Raises ``ValueError`` where an adapter sits on it: the scores are computed from its weight alone.
    """
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        if getattr(config, "logits_scaling", None) is not None:
            scale = config.logits_scaling if config.model_type == "hyperclovax" else 1.0 / config.logits_scaling
    layer = model.get_output_embeddings()
    if hasattr(layer, "base_layer"):
        raise ValueError(
            "lora_target_modules: an adapter on the output embedding would not be seen by the scores, which are computed "
            "from its weight; leave lm_head out (all-linear does), or train it whole (lora_modules_to_save)"
        )
    return Head(layer.weight, layer.bias, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))


def at_completion(hidden: Tensor, length: int) -> Tensor:
    """(B,P+T,H) -> (B,T,H): the states from which the ``length`` completion tokens were predicted."""
    return hidden[:, -length - 1 : -1]
