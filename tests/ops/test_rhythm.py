"""Rhythm gating against a loop written from the equations, and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.ops.rhythm import anchor_gate, entropy_drop, exceedance_bonus, rhythm, rhythm_weights
from errata.ops.scores import TokenScores

DEFAULTS = {"margin": 0.2, "tau": 1.0, "max_bonus": 2.0, "window": 8}
DEFAULTS |= {"anchor_scale": 1.0, "mix": 1.0, "floor": 0.5, "ceiling": 2.0}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop(scores, mask, medium, *, margin, tau, max_bonus, window, anchor_scale, mix, floor, ceiling):
    """One response at a time, one token at a time, in Python floats."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for i in range(mask.shape[0]):
        valid = [t for t in range(mask.shape[1]) if mask[i, t]]
        ls, lt, hs, ht = ([float(f[i, t]) for t in valid] for f in scores[:4])

        def drop(h, t, window=window):
            before, after = h[max(t - window, 0) : t], h[t + 1 : t + 1 + window]
            if not before or not after:
                return 0.0
            return max(sum(before) / len(before) - sum(after) / len(after), 0.0)

        d = [max(drop(ht, t) - drop(hs, t), 0) * max(hs[t] - ht[t], 0) for t in range(len(valid))]
        mean = sum(d) / max(len(d), 1)
        std = math.sqrt(sum((x - mean) ** 2 for x in d) / max(len(d), 1))
        g = [2 * max(sigmoid(anchor_scale * (x - mean) / max(std, 1e-6)) - 0.5, 0) for x in d]
        raw = [1 + mix * x for x in g]
        for t, column in enumerate(valid):
            m = min(max(raw[t] / (sum(raw) / len(raw)), floor), ceiling)
            gate = min(max((m - 1) / (ceiling - 1), 0), 1)
            b = min(math.exp(tau * max(ls[t] - lt[t] - margin, 0)), max_bonus) - 1
            out[i, column] = 1 + float(medium[i]) * gate * b
    return out


def random_scores(b, t):
    logps = [-3 * torch.rand(b, t) for _ in range(2)]
    entropies = [2 * torch.rand(b, t) for _ in range(2)]
    return TokenScores(logps[0], logps[1], entropies[0], entropies[1], torch.rand(b, t))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(0, 10_000))


@given(
    shapes,
    st.sampled_from([{}, {"window": 1}, {"window": 50, "tau": 3.0}, {"mix": 4.0, "ceiling": 1.2, "anchor_scale": 5.0}]),
)
@settings(max_examples=60, deadline=None)
def test_matches_the_loop(shape, changed):
    b, t, seed = shape
    torch.manual_seed(seed)
    scores, mask, medium = random_scores(b, t), torch.rand(b, t) > 0.25, torch.rand(b)
    dirty = TokenScores(
        *(
            f.masked_fill(~mask, bad)
            for f, bad in zip(scores, (math.nan, -math.inf, math.inf, math.nan, 0.0), strict=True)
        )
    )
    weights = rhythm_weights(dirty, mask, medium, **changed)
    torch.testing.assert_close(
        weights.double(), loop(scores, mask, medium, **(DEFAULTS | changed)), atol=1e-4, rtol=1e-4
    )
    assert weights.dtype == torch.float32
    assert (weights[~mask] == 0).all()
    assert ((weights[mask] >= 1) & (weights[mask] <= DEFAULTS["max_bonus"])).all()


def test_exceedance_bonus_by_hand():
    """ℓS - ℓT - 0.2 = -0.2, 0, ln 1.5, 5: nothing, nothing, half, capped at B_max - 1."""
    gap = torch.tensor([[0.0, 0.2, 0.2 + math.log(1.5), 5.2]])
    bonus = exceedance_bonus(gap - 6, torch.full((1, 4), -6.0), margin=0.2, tau=1.0, max_bonus=2.0)
    torch.testing.assert_close(bonus, torch.tensor([[0.0, 0.0, 0.5, 1.0]]), atol=1e-5, rtol=0)


def test_entropy_drop_by_hand():
    """Windows of two, cut at the ends; the token itself and the masked one in the middle belong to no window."""
    entropy = torch.tensor([[3.0, 5.0, math.nan, 1.0, 1.0, 3.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1, 1]])
    # own tokens 3 5 1 1 3: nothing before; 3 - (1+1)/2; (3+5)/2 - (1+3)/2; (5+1)/2 - 3 = 0; nothing after
    expected = torch.tensor([[0.0, 2.0, 0.0, 2.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy_drop(entropy, mask, window=2), expected)


def test_anchor_gate_by_hand():
    """D = (0, 0, 0, 4): mean 1, deviation √3, z = √3 for the last; g = 2σ(√3) - 1, mean of 1 + g over four."""
    strength = torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    gate = anchor_gate(strength, torch.ones(1, 4), anchor_scale=1.0, mix=1.0, floor=0.5, ceiling=2.0)
    g = 2 * sigmoid(math.sqrt(3)) - 1
    torch.testing.assert_close(gate, torch.tensor([[0.0, 0.0, 0.0, (1 + g) / (1 + g / 4) - 1]]), atol=1e-6, rtol=0)


def test_a_flat_response_has_no_gate():
    scores = TokenScores(*(torch.full((1, 6), x) for x in (-0.1, -5.0, 1.0, 0.5, 0.0)))
    parts = rhythm(scores, torch.ones(1, 6), torch.ones(1))
    assert parts.weights.tolist() == [[1.0] * 6]
    assert parts.gate.tolist() == [[0.0] * 6]
    assert parts.bonus.tolist() == [[1.0] * 6]


@pytest.mark.parametrize("floor", [0.0, 0.25])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_gate_floor_and_power_by_hand(floor, power):
    """The release: gate^power, then floor + (1 - floor) of it. D = (0, 2, 0, 0), so the gate is as above; b_t is 1."""
    logp, teacher_logp = torch.full((1, 4), -0.1), torch.full((1, 4), -5.0)
    entropy, teacher_entropy = torch.full((1, 4), 2.0), torch.tensor([[2.0, 1.0, 0.0, 2.0]])
    scores = TokenScores(logp, teacher_logp, entropy, teacher_entropy, None)
    found = rhythm(scores, torch.ones(1, 4), torch.tensor([0.5]), window=1, gate_floor=floor, gate_power=power)
    g = 2 * sigmoid(math.sqrt(3)) - 1
    anchor = ((1 + g) / (1 + g / 4) - 1) ** power
    expected = torch.tensor([[floor, floor + (1 - floor) * anchor, floor, floor]])
    torch.testing.assert_close(found.gate, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.weights, 1 + 0.5 * expected, atol=1e-6, rtol=0)


def test_hard_and_easy_problems_get_no_bonus():
    scores, mask = random_scores(3, 200), torch.ones(3, 200)
    weights = rhythm_weights(scores, mask, torch.tensor([0.0, 0.0, 1.0]))
    assert (weights[:2] == 1).all()
    assert weights[2].max() > 1


@given(shapes)
@settings(max_examples=20, deadline=None)
def test_padding_does_not_matter(shape):
    b, t, seed = shape
    torch.manual_seed(seed)
    scores, mask, medium = random_scores(b, t), torch.rand(b, t) > 0.25, torch.rand(b)
    wide = TokenScores(*(torch.nn.functional.pad(f, (2, 3), value=math.nan) for f in scores))
    padded = rhythm_weights(wide, torch.nn.functional.pad(mask, (2, 3)), medium)
    torch.testing.assert_close(padded[:, 2 : 2 + t], rhythm_weights(scores, mask, medium), atol=1e-5, rtol=1e-5)


def test_no_gradient():
    scores = TokenScores(*(f.requires_grad_() for f in random_scores(2, 5)))
    assert not rhythm_weights(scores, torch.ones(2, 5), torch.ones(2)).requires_grad


@pytest.mark.parametrize(
    ("changed", "argument"),
    [
        ({"mask": torch.ones(2, 4)}, "scores.student_logp"),
        ({"mask": torch.ones(5)}, "mask"),
        ({"beta": torch.ones(3)}, "beta"),
        ({"scores": TokenScores(torch.zeros(2, 5), None, torch.zeros(2, 5), None, None)}, "scores"),
        ({"ceiling": 1.0}, "ceiling"),
        ({"window": 0}, "window"),
        ({"max_bonus": 0.5}, "max_bonus"),
        ({"gate_floor": 1.5}, "gate_floor"),
        ({"gate_power": 0.0}, "gate_power"),
    ],
)
def test_errors_name_the_argument(changed, argument):
    arguments = {"scores": random_scores(2, 5), "mask": torch.ones(2, 5), "beta": torch.ones(2)} | changed
    with pytest.raises(ValueError, match=argument):
        rhythm_weights(**arguments)
