"""Running a model up to its last hidden states, with its head at hand, through whatever wraps it.

DDP and FSDP gather gradients and shards only for what happens inside the wrapped forward. So the work on the head is
handed in as a function: ``model(..., with_head=f)`` returns ``f(hidden, head)``, and nothing of size (B,T,V) is made.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.ops.scores import Head
from errata.training import compat
from errata.training.padding import without_padding

HeadFunction = Callable[[Tensor, Head], object]
"""(last hidden states (B,L,H), head) -> what the model's forward is to return."""


def accept_head_function(model: PreTrainedModel, *, packed: bool = False, grouped: bool = False) -> None:
    """Teach ``model`` (a Hugging Face causal language model, not yet wrapped) the keyword ``with_head``.

    ``packed`` and ``grouped`` are how padding is left out (``errata.training.padding``).

    With ``router_loss=True`` beside it, the forward of a mixture-of-experts model returns what the function returns (a tuple)
    and, as a last element, the model's own loss that keeps its experts equally busy.

    Raises ``ValueError`` for a head that ``head_of`` cannot read.
    """
    head_of(model)
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: PreTrainedModel,
        *args: object,
        with_head: HeadFunction | None = None,
        router_loss: bool = False,
        **kwargs: Tensor,
    ) -> object:
        if with_head is None:
            return original(*args, **kwargs)

        def positioned(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            if self in _WITH_POSITIONS and inputs.get("position_ids") is None:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            return inputs

        def run(**inputs: Tensor) -> Tensor:
            hidden: Tensor = self.base_model(*args, use_cache=False, **positioned(inputs)).last_hidden_state
            return hidden

        balance: tuple[Tensor, ...] = ()
        if router_loss:  # the loss is over all tokens of the batch, so they stay together
            hidden, loss = _with_router_loss(self, original, *args, **positioned(kwargs))
            balance = (loss,)
        elif kwargs.keys() == {"input_ids", "attention_mask"}:
            hidden = without_padding(run, **kwargs, packed=packed, grouped=grouped)
        else:
            hidden = run(**kwargs)
        head = head_of(self)
        with compat.gathered(head.weight, head.bias):
            found = with_head(hidden.to(head.weight.device), head)
        return (*found, *balance) if isinstance(found, tuple) and balance else found

    model.forward = types.MethodType(forward, model)


def _with_router_loss(
    model: PreTrainedModel, forward: Callable[..., object], *args: object, **kwargs: Tensor
) -> tuple[Tensor, Tensor]:
    """The last hidden states (B,L,H), and the loss that each family of models computes in its own way from its routers."""
    states: list[Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda module, given, outputs: states.append(outputs.last_hidden_state)
    )
    try:  # the model's own forward, with the logits of one position, which nobody reads
        outputs = forward(*args, use_cache=False, output_router_logits=True, logits_to_keep=1, **kwargs)
    finally:
        hook.remove()
    loss = getattr(outputs, "aux_loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"router_aux_loss_coef: {type(model).__name__} gives no loss of its routers; set router_aux_loss_coef: 0"
        )
    return states[0], loss


@torch.no_grad()
def check_router_loss(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` for a mixture-of-experts model that does not give the loss of its routers."""
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), with_head=lambda *_: (), router_loss=True)


_WITH_POSITIONS: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
"""Models whose positions must be given under left padding (``check_scores``)."""


@torch.no_grad()
def check_scores(model: PreTrainedModel) -> None:
    """Compare, on a few tokens, the log-probs that errata computes from hidden states and head with the model's own logits.

    Models that count positions from the first padding token (GPT-2 and its kind) get their positions from then on. Call it
    after ``accept_head_function``, on a model that is not sharded.

    Raises:
        ValueError: naming the architecture, where they differ or where the model cannot be run up to its hidden states.
    """
    name, training = type(model).__name__, model.training
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, 6), generator=torch.Generator().manual_seed(0)).to(model.device)
    mask = torch.ones_like(ids)
    padded = {
        "input_ids": torch.nn.functional.pad(ids, (3, 0)),
        "attention_mask": torch.nn.functional.pad(mask, (3, 0)),
    }
    model.eval()
    try:
        own = model(input_ids=ids, attention_mask=mask).logits[0].float()
        ours = _logp_of_states(model, {"input_ids": ids, "attention_mask": mask})
        under_padding = _logp_of_states(model, padded)[3:]
        # bfloat16 and float16 logits are rounded by up to 1/256 of their size.
        exact = model.dtype in (torch.float32, torch.float64)
        tolerance = 1e-3 if exact else 0.02 + float(own.abs().max()) / 64
        difference = float((ours - own.log_softmax(-1)).abs().max())
        if not difference <= tolerance:
            raise ValueError(
                f"model: {name}'s own log-probs differ from those of its hidden states and output embedding by "
                f"{difference:.3g} nats: it changes its logits in a way that errata does not know; use another model"
            )
        if not float((under_padding - ours).abs().max()) <= 10 * tolerance:
            _WITH_POSITIONS.add(model)
            difference = float((_logp_of_states(model, padded)[3:] - ours).abs().max())
            if not difference <= 10 * tolerance:
                raise ValueError(
                    f"model: {name}'s log-probs change by {difference:.3g} nats under left padding, and positions do not "
                    "mend it; use another model"
                )
    except (TypeError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        raise ValueError(
            f"model: {name} cannot be run up to its last hidden states: {' '.join(str(error).split())[:200]}; "
            "errata needs a decoder with an output embedding; use another model"
        ) from error
    finally:
        model.train(training)


def _logp_of_states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """(L,V) log-probs by the model's hidden states and head."""
    logits: Tensor = model(**inputs, with_head=lambda hidden, head: head.logits(hidden[0]))
    return logits.log_softmax(-1)


def head_of(model: PreTrainedModel) -> Head:
    """The output embedding of a causal language model with its family's logit scaling and soft-capping.

    Gemma caps (``final_logit_softcapping``), so do RecurrentGemma (``logits_soft_cap``) and xLSTM
    (``output_logit_soft_cap``). Cohere and others multiply (``logit_scale``, ``lm_head_multiplier``, ``output_multiplier``).
    Granite and MiniCPM divide (``logits_scaling``); HyperCLOVA X multiplies by the same name.

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
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((value for name in caps if (value := getattr(config, name, None)) is not None), None)
    # An adapter that trains rows of the embedding (trainable_token_indices) gives the weight with these rows, and hides the bias.
    bias = (layer.original_module if hasattr(layer, "token_adapter") else layer).bias
    return Head(layer.weight, bias, scale=scale, softcap=softcap)


def at_completion(hidden: Tensor, length: int) -> Tensor:
    """(B,P+T,H) -> (B,T,H): the states from which the ``length`` completion tokens were predicted."""
    return hidden[:, -length - 1 : -1]
