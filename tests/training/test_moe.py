"""Mixture-of-experts policies: the loss that keeps the experts equally busy is added beside every method, as TRL adds it."""

import pytest
import torch
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, history, reward, rows, settings, trainer, weights
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "router_aux_loss_coef": 0.1,
}


def qwen3():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=4, head_dim=8))


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


class Gradients(TrainerCallback):
    """Those of the first step, before they are clipped: ``max_grad_norm`` is 0."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [qwen3, mixtral])
def test_grpo_walks_trls_own_path(tmp_path, build):
    common = {
        "scale_rewards": "none",
        "epsilon_high": 0.28,
        "max_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    }
    trls = GRPOTrainer(
        model=build(),
        reward_funcs=[reward],
        args=GRPOConfig(**settings(tmp_path, **common)),
        train_dataset=rows(),
        processing_class=TOKENIZER,
    )
    trls.train()
    ours = trainer(tmp_path, "grpo", model=build(), verifiers=[reward], **common)
    ours.train()
    names = ("loss", "grad_norm", "reward", "aux_loss")
    expected, found = history(trls, *names), history(ours, *names)
    assert all(aux > 1 for *_, aux in expected)  # 1 per layer would be equally busy experts with one choice
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    a, b = (torch.cat([p.flatten() for p in weights(t.model).values()]) for t in (ours, trls))
    assert float((a - b).norm() / b.norm()) < 1e-4


@pytest.mark.parametrize("method", ["sdpo", "distil", "drift"])
def test_it_is_added_to_a_distillation_loss(tmp_path, method):
    """The gradient with it less the gradient without is the coefficient times that of the model's own loss."""

    def first(coefficient):
        run = trainer(
            tmp_path,
            method,
            model=qwen3(),
            max_steps=1,
            max_grad_norm=0.0,
            router_aux_loss_coef=coefficient,
            teacher="frozen",
        )
        seen = Gradients()
        run.add_callback(seen)
        run.train()
        return run, seen.found

    run, both = first(0.5)
    _, alone = first(0.0)
    inputs = run.generation.tokens.model_inputs()
    model = qwen3()
    balance = model(**inputs, output_router_logits=True).aux_loss
    balance.backward()
    own = {n: p.grad for n, p in model.named_parameters()}
    assert run.state.log_history[0]["aux_loss"] == pytest.approx(float(balance), rel=1e-5)
    assert float(own["model.layers.1.mlp.gate.weight"].norm()) > 1e-3
    for name, gradient in both.items():
        expected = alone[name] if own[name] is None else alone[name] + 0.5 * own[name]
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4, msg=name)


def test_a_model_without_routers_has_no_such_loss(tmp_path):
    with pytest.raises(ValueError, match="router_aux_loss_coef"):
        trainer(tmp_path, "sdpo", model=build_model(len(TOKENIZER)), router_aux_loss_coef=0.1)
