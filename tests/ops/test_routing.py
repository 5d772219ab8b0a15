"""Difficulty and branch weights, against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.ops.routing import (
    Difficulty,
    difficulty_bins,
    difficulty_gates,
    entropy_weights,
    paper_weights,
    released_weights,
)


def test_gates_by_hand():
    """At p = 0.3: h = σ(0) = ½, e = σ(-5), m = ½·(1 - e); at ½ hard and easy are equal."""
    hard, medium, easy = difficulty_gates(torch.tensor([0.3, 0.5]))
    e = 1 / (1 + math.exp(5))
    total = 0.5 + e + 0.5 * (1 - e)
    assert hard[0].item() == pytest.approx(0.5 / total, abs=1e-6)
    assert easy[0].item() == pytest.approx(e / total, abs=1e-6)
    assert medium[0].item() == pytest.approx(0.5 * (1 - e) / total, abs=1e-6)
    s = 1 / (1 + math.exp(2.5))
    assert hard[1].item() == pytest.approx(easy[1].item(), abs=1e-6)
    assert hard[1].item() == pytest.approx(s / (2 * s + (1 - s) ** 2), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_gates_are_a_partition(rates, temperature):
    gates = difficulty_gates(torch.tensor(rates), temperature=temperature)
    torch.testing.assert_close(sum(gates), torch.ones(len(rates)), atol=1e-6, rtol=0)
    assert all(((g >= 0) & (g <= 1)).all() for g in gates)
    assert all(g.dtype == torch.float32 for g in gates)
    assert torch.equal(sum(difficulty_bins(torch.tensor(rates))), torch.ones(len(rates)))


def test_bins_by_hand():
    hard, medium, easy = difficulty_bins(torch.tensor([0.0, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0]))
    assert hard.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert medium.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert easy.tolist() == [0, 0, 0, 0, 0, 1, 1]


# hard, medium, easy; each correct and incorrect; then without a teacher
CORRECT = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0])
HAS_TEACHER = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
DIFFICULTY = Difficulty(*torch.tensor([[1, 0, 0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1, 0, 0.0]]))


def test_paper_weights_by_hand():
    rl, sd = paper_weights(DIFFICULTY, CORRECT, HAS_TEACHER)
    # The paper's γ for correct responses holds with or without a teacher; incorrect ones need one to distil.
    assert rl.tolist() == [0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert sd.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_released_weights_by_hand():
    rl, sd = released_weights(DIFFICULTY, CORRECT, HAS_TEACHER)
    torch.testing.assert_close(rl, torch.tensor([0.3, 1.0, 0.05, 0.0, 0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(sd, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.35, 0.0, 0.0]))
    rl, sd = released_weights(DIFFICULTY, CORRECT, HAS_TEACHER, distil_correct=True)
    torch.testing.assert_close(sd, torch.tensor([0.7, 0.0, 0.0, 1.0, 0.0, 0.35, 0.0, 0.0]))


def test_entropy_weights_by_hand():
    """exp(-H) = 1, ½, ¼ with mean 7/12; the masked NaN is nothing."""
    entropy = torch.tensor([[0.0, math.log(2.0), math.nan], [math.log(4.0), 5.0, 5.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights = entropy_weights(entropy, mask)
    torch.testing.assert_close(weights, torch.tensor([[12 / 7, 6 / 7, 0.0], [3 / 7, 0.0, 0.0]]))
    torch.testing.assert_close(entropy_weights(entropy, mask, beta=0.0), mask.float())


@given(st.integers(0, 10_000), st.floats(0, 200))
@settings(max_examples=30, deadline=None)
def test_entropy_weights_average_one(seed, beta):
    torch.manual_seed(seed)
    entropy, mask = 12 * torch.rand(3, 5), torch.rand(3, 5) > 0.3
    weights = entropy_weights(entropy, mask, beta=beta)
    assert (weights[~mask] == 0).all()
    if mask.any():
        assert weights[mask].mean().item() == pytest.approx(1.0, abs=1e-4)


def test_nothing_routed_weighs_nothing():
    assert entropy_weights(torch.ones(1, 2), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="mask"):
        entropy_weights(torch.ones(1, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="has_teacher"):
        paper_weights(DIFFICULTY, CORRECT, HAS_TEACHER[:1])
