"""Surrogates and advantages: by hand, and against TRL's GRPO."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from errata.ops.policy_gradient import clipped_surrogate, group_advantage, importance_surrogate

NAN = math.nan


def test_clipped_surrogate_by_hand():
    """Ratios 3/2, 3/2, 1/2, 1/2 with advantages ±1: pessimistic on both sides of the clip [0.8, 1.28]."""
    ratio, advantage = torch.tensor([[1.5, 1.5, 0.5, 0.5]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    logp = (ratio.log() - 2.0).requires_grad_()
    loss = clipped_surrogate(logp, torch.full((1, 4), -2.0), advantage)
    torch.testing.assert_close(loss, torch.tensor([[-1.28, 1.5, -0.5, 0.8]]))
    loss.sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0, 1.5, -0.5, 0.0]]))  # clipped: no gradient


def test_without_old_log_probabilities_it_is_the_policy_gradient():
    logp, advantage = torch.randn(2, 3, requires_grad=True), torch.randn(2)
    for surrogate in (clipped_surrogate, importance_surrogate):
        (grad,) = torch.autograd.grad(surrogate(logp, None, advantage).sum(), logp)
        torch.testing.assert_close(grad, -advantage[:, None].expand(2, 3))


def test_importance_surrogate_by_hand():
    """-sg min(ρ, 2)·A·logp with ρ = 1/2 and 4, A = 3."""
    logp = torch.tensor([[math.log(0.1), math.log(0.8)]], requires_grad=True)
    loss = importance_surrogate(logp, torch.full((1, 2), math.log(0.2)), torch.tensor([[3.0, 3.0]]))
    torch.testing.assert_close(loss, torch.tensor([[-0.5 * 3 * math.log(0.1), -2 * 3 * math.log(0.8)]]))
    loss.sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-1.5, -6.0]]))


def test_group_advantage_by_hand():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([4, 4, 4, 9, 9])
    torch.testing.assert_close(group_advantage(reward, group), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.0]))
    # Deviation of (1, 0, 0) with n-1: sqrt((4+1+1)/9/2) = 3^-½.
    scale = 3**-0.5 + 1e-4
    expected = torch.tensor([2 / 3 / scale, -1 / 3 / scale, -1 / 3 / scale, 0.0, 0.0])
    torch.testing.assert_close(group_advantage(reward, group, scale="group"), expected)


def test_unjudged_responses_are_left_out():
    group = torch.tensor([0, 0, 0, 1])
    expected = torch.tensor([0.5, 0.0, -0.5, 0.0])
    torch.testing.assert_close(group_advantage([1.0, None, 0.0, None], group), expected)
    torch.testing.assert_close(group_advantage(torch.tensor([1.0, NAN, 0.0, 3.0]), group), expected)
    for scale in ("group", "batch"):
        assert torch.isfinite(group_advantage([1.0, None, 0.0, None], group, scale=scale)).all()
    assert group_advantage([NAN, None], torch.tensor([0, 0]), scale="group").tolist() == [0.0, 0.0]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(3, 6), st.sampled_from(["none", "group", "batch"]))
@settings(max_examples=40, deadline=None)
def test_advantage_parity_with_trl(seed, groups, size, scale):
    """TRL's formula with its own ``nanstd``, on rewards of which a few are missing but never all but one of a group."""
    torch.manual_seed(seed)
    reward = torch.rand(groups, size)
    reward[:, 2:][torch.rand(groups, size - 2) > 0.7] = NAN
    expected = reward - torch.nanmean(reward, 1, keepdim=True)
    if scale == "group":
        expected = expected / (nanstd(reward, dim=1, keepdim=True) + 1e-4)
    elif scale == "batch":
        expected = expected / (nanstd(reward) + 1e-4)
    ours = group_advantage(reward.flatten(), torch.arange(groups).repeat_interleave(size), scale=scale)
    torch.testing.assert_close(ours, expected.nan_to_num(0.0).flatten(), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_permuting_responses_permutes_advantages(seed):
    torch.manual_seed(seed)
    reward, group, order = torch.rand(8), torch.randint(0, 3, (8,)), torch.randperm(8)
    for scale in ("none", "group", "batch"):
        torch.testing.assert_close(
            group_advantage(reward[order], group[order], scale=scale),
            group_advantage(reward, group, scale=scale)[order],
        )


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x: clipped_surrogate(x, x[:1], x), "old_logp"),
        (lambda x: clipped_surrogate(x, x, x[:1]), "advantage"),
        (lambda x: group_advantage(x[0], torch.zeros(2, dtype=torch.long)), "group"),
        (lambda x: group_advantage(x[0], torch.zeros(3, dtype=torch.long), scale="std"), "scale"),
    ],
)
def test_errors_name_the_argument(call, argument):
    with pytest.raises(ValueError, match=argument):
        call(torch.randn(2, 3))
