"""Which states are queried, with which weights, and what sparse answers hold: sums over queried states are unbiased."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.experts import Access
from errata.experts.access import inclusion_probabilities, sample_states, sparse_distribution
from errata.experts.queries import Answer, pad_answers

SCORES = st.lists(st.floats(0, 100), min_size=1, max_size=40)


@given(scores=SCORES, share=st.floats(0.02, 0.99))
@settings(max_examples=200, deadline=None)
def test_inclusion_probabilities_are_at_most_one_and_sum_to_the_share(scores, share):
    chance = inclusion_probabilities(torch.tensor(scores), share)
    assert (chance > 0).all()
    assert (chance <= 1 + 1e-12).all()
    assert chance.sum().item() == pytest.approx(share * len(scores))


def test_chances_follow_the_scores_but_for_a_tenth():
    # Of 1.0 question: nine tenths by score (3 : 1 : 0 : 0), one tenth to all four alike.
    found = inclusion_probabilities(torch.tensor([3.0, 1.0, 0.0, 0.0]), 0.25)
    assert found.tolist() == pytest.approx([0.9 * 0.75 + 0.025, 0.9 * 0.25 + 0.025, 0.025, 0.025])
    # Whoever would get more than 1 gets 1; the rest share the second question.
    assert inclusion_probabilities(torch.tensor([1000.0, 1.0, 1.0, 0.0]), 0.5)[0] == 1


def test_equal_scores_ask_every_nth_state_from_a_random_start():
    starts = set()
    for seed in range(60):
        asked = sample_states(torch.ones(12), share=0.25, rng=random.Random(seed))
        steps = sorted(asked)
        assert len(steps) == 3
        assert {b - a for a, b in itertools.pairwise(steps)} == {4}
        assert set(asked.values()) == {4.0}
        starts.add(steps[0])
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.7])
def test_each_state_is_asked_as_often_as_its_chance_and_sums_are_right_on_average(share):
    torch.manual_seed(0)
    score, cost = torch.rand(17) ** 3, torch.rand(17)
    n = 20_000
    hits, total = torch.zeros(17), 0.0
    for seed in range(n):
        asked = sample_states(score, share=share, rng=random.Random(seed))
        hits[list(asked)] += 1
        total += sum(weight * float(cost[t]) for t, weight in asked.items())
    chance = inclusion_probabilities(score, share).float()
    error = (chance * (1 - chance) / n).sqrt()
    assert ((hits / n - chance).abs() <= 4.5 * error + 1e-9).all()
    assert total / n == pytest.approx(cost.sum().item(), rel=0.04)


def test_the_highest_are_asked_and_counted_once_where_bias_is_allowed():
    asked = sample_states(torch.tensor([0.1, 3.0, 0.2, 2.0]), share=0.5, unbiased=False, rng=random.Random(0))
    assert asked == {1: 1.0, 3: 1.0}


def test_a_share_of_one_asks_everywhere_and_nothing_is_asked_of_nothing():
    assert sample_states(torch.rand(3), share=1.0, rng=random.Random(0)) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert sample_states(torch.rand(0), share=0.5, rng=random.Random(0)) == {}


def test_samples_come_as_often_as_they_are_likely_and_again_with_the_same_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -50.0]]).expand(4000, 4)
    tokens, logp = sparse_distribution(logits, gives="samples", top_k=1, samples=4, seed=3)
    share = torch.bincount(tokens.flatten(), minlength=4) / tokens.numel()
    p = torch.tensor([0.0, 1.0, 2.0, -50.0]).softmax(-1)
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / tokens.numel()).sqrt() + 1e-9).all()
    assert logp.exp().sum(-1).tolist() == pytest.approx([1.0] * 4000)
    assert torch.equal(tokens, sparse_distribution(logits, gives="samples", top_k=1, samples=4, seed=3)[0])


def test_top_k_gives_the_most_likely_tokens_with_their_log_probabilities():
    tokens, logp = sparse_distribution(torch.tensor([[0.0, 1.0, 2.0]]), gives="topk", top_k=2, samples=1, seed=0)
    assert tokens.tolist() == [[2, 1]]
    assert logp.exp().tolist()[0] == pytest.approx([0.66524, 0.24473], abs=1e-5)


def test_answers_are_padded_over_tokens():
    answer = Answer((0, 2), torch.tensor([[5, 6], [7, 8]]), torch.tensor([[-1.0, -2.0], [-0.5, -torch.inf]]))
    tokens, logp, counts = pad_answers([None, answer], [{1: 4.0}, {0: 4.0, 1: 4.0, 2: 2.0}], 3)
    assert tokens[1].tolist() == [[5, 6], [0, 0], [7, 8]]
    assert logp[1, 2].tolist() == [-0.5, -torch.inf]
    assert counts.tolist() == [[0, 0, 0], [4, 0, 2]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gives": "logits"}, "gives: 'logits' is none of"),
        ({"gives": "samples", "where": "here"}, "where: 'here' is none of"),
        ({"gives": "samples", "samples": 0}, "samples: must be a whole number of at least 1, got 0"),
        ({"gives": "samples", "share": 0.0}, r"share: must be a number in \(0, 1\], got 0.0"),
        ({"gives": "topk", "share": 0.5}, "share 0.5 needs gives: samples"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        Access(**setting)
