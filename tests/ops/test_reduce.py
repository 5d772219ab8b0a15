"""Σ weight·loss equals TRL's own ``_compute_loss`` for each loss type: TRL's code runs, fed these log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from errata.ops.policy_gradient import clipped_surrogate
from errata.ops.reduce import token_weights


def trl_loss(kind, logp, old, advantage, mask, *, items, processes, accumulation, per_generation, max_length):
    b = logp.shape[0]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type=kind,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        max_completion_length=max_length,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=accumulation,
        args=SimpleNamespace(delta=None, steps_per_generation=per_generation),
        accelerator=SimpleNamespace(
            num_processes=processes, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
        ),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(b, 1, dtype=torch.long),
        "prompt_mask": torch.ones(b, 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_per_token_logps": old,
        "num_items_in_batch": torch.tensor(items),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("kind", ["dapo", "grpo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_parity_with_trl(kind, accumulation):
    torch.manual_seed(0)
    logp, old, advantage = (
        -torch.rand(5, 7, dtype=torch.float64),
        -torch.rand(5, 7, dtype=torch.float64),
        torch.randn(5),
    )
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 0, 5])[:, None]
    items, processes, per_generation = 61, 2, 8
    theirs = trl_loss(
        kind,
        logp,
        old,
        advantage,
        mask,
        items=items,
        processes=processes,
        accumulation=accumulation,
        per_generation=per_generation,
        max_length=11,
    )
    weights = token_weights(
        mask, kind, total=items / processes * accumulation / per_generation, max_length=11, accumulation=accumulation
    )
    ours = (weights * clipped_surrogate(logp, old, advantage)).sum()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]])
    torch.testing.assert_close(token_weights(mask, "dapo"), mask / 4)
    torch.testing.assert_close(token_weights(mask, "dapo", total=torch.tensor(10)), mask / 10)
    torch.testing.assert_close(token_weights(mask, "dapo", total=0.5), mask / 0.5)  # few tokens over many processes
    torch.testing.assert_close(token_weights(mask, "bnpo", accumulation=2), mask / 8)
    torch.testing.assert_close(token_weights(mask, "dr_grpo", max_length=5), mask / 10)
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [0, 1 / 2, 0, 0]])
    torch.testing.assert_close(token_weights(mask, "grpo"), expected)


@pytest.mark.parametrize("kind", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_an_empty_mask_weighs_nothing(kind):
    assert token_weights(torch.zeros(2, 3), kind, max_length=4).tolist() == [[0.0] * 3] * 2


def test_micro_batches_of_a_step_add_up_to_the_whole():
    mask, loss = torch.rand(6, 9) > 0.4, torch.rand(6, 9)
    whole = (token_weights(mask, "dapo") * loss).sum()
    parts = [(token_weights(mask[i : i + 2], "dapo", total=mask.sum()) * loss[i : i + 2]).sum() for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=1e-6)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="kind"):
        token_weights(torch.ones(2, 3), "mean")
    with pytest.raises(ValueError, match="max_length"):
        token_weights(torch.ones(2, 3), "dr_grpo")
    with pytest.raises(ValueError, match="mask"):
        token_weights(torch.ones(3), "dapo")
