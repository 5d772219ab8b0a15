"""What a token's loss is divided by, for fresh rollouts and for past ones beside them."""

import pytest
import torch

from errata.ops.reduce import KINDS
from errata.training.loss import Averaging

FRESH = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


def averaging(kind):
    return Averaging(kind, max_completion_length=10, accumulation=2, steps_per_generation=4, processes=2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 40 tokens in 4 micro-batches on 2 processes; the optimizer's step is 2 of those on each.
        ("dapo", [1 / 10, 1 / 10]),
        ("bnpo", [1 / 8 / 2, 1 / 8 / 2]),
        ("grpo", [1 / 3 / 2 / 2, 1 / 5 / 2 / 2]),
        ("dr_grpo", [1 / 20 / 2, 1 / 20 / 2]),
    ],
)
def test_each_loss_type_has_its_denominator(kind, expected):
    found = averaging(kind).weights(FRESH, torch.tensor(40.0))
    torch.testing.assert_close(found, FRESH * torch.tensor(expected)[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[0], [1, 0], [1, 1, 0, 0, 1]])
def test_a_past_rollout_weighs_as_it_would_among_the_fresh(kind, rows):
    one, count = averaging(kind), torch.tensor(40.0)
    torch.testing.assert_close(one.weights(FRESH[rows], count, FRESH), one.weights(FRESH, count)[rows])
