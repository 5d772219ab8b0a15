"""With ``method: grpo`` errata's trainer walks TRL's own path: same seed, same data, same losses, gradients and weights."""

import pytest
import torch
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, history, reward, rows, settings, trainer, weights
from trl import GRPOConfig, GRPOTrainer

SETUPS = {
    "one micro-batch": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "off-policy within a generation batch": {"steps_per_generation": 4},
    "several epochs on a batch": {"num_iterations": 2},
    "reward scaling": {"scale_rewards": "group"},
    "sequence mean": {"loss_type": "grpo", "gradient_accumulation_steps": 2},
    "micro-batch mean": {"loss_type": "bnpo"},
    "constant length": {"loss_type": "dr_grpo"},
    "an option only TRL has": {"loss_type": "cispo", "epsilon_high": 5.0},
    "entropy bonus": {"entropy_coef": 0.01},
}


@pytest.mark.parametrize("setup", SETUPS)
def test_same_trajectory_as_trl(tmp_path, setup):
    common = {
        "scale_rewards": "none",
        "epsilon_high": 0.28,
        "max_steps": 10,
        "max_completion_length": 8,
        **SETUPS[setup],
    }
    trls = GRPOTrainer(
        model=build_model(len(TOKENIZER)),
        reward_funcs=[reward],
        args=GRPOConfig(**settings(tmp_path, **common)),
        train_dataset=rows(),
        processing_class=TOKENIZER,
    )
    trls.train()
    ours = trainer(tmp_path, "grpo", verifiers=[reward], **common)
    ours.train()

    expected, found = history(trls, "loss", "grad_norm", "reward"), history(ours, "loss", "grad_norm", "reward")
    assert len(found) == 10
    assert any(abs(g) > 1e-3 for _, g, _ in expected)  # something was learned from
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    # Adam divides by the gradient's own size: where that is rounding noise, so is the step. Hence the norm over all weights.
    a, b = (torch.cat([p.flatten() for p in weights(t.model).values()]) for t in (ours, trls))
    assert float((a - b).norm() / b.norm()) < 1e-4


def test_other_methods_refuse_options_they_cannot_honour(tmp_path):
    with pytest.raises(ValueError, match=r"beta: the loss of SDPO is not TRL's"):
        trainer(tmp_path, "sdpo", beta=0.1)
