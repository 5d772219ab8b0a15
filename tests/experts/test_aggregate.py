"""The store drops its oldest rollouts; past states get importance weights; batches are padded."""

import math
import random

import pytest
import torch

from errata.experts.aggregate import Aggregate, PastRollout, pad_rollouts, prefix_importance


def past(length, prompt=2, k=1, fill=1):
    ids = torch.full((length,), fill)
    return PastRollout(
        torch.full((prompt,), 9),
        ids,
        torch.ones(length).bool(),
        torch.full((length,), -0.5),
        ids[:, None].expand(-1, k),
        torch.zeros(length, k),
        torch.ones(length),
    )


def test_the_oldest_are_dropped_first_and_a_state_restores_the_rest():
    store = Aggregate(3)
    store.add([past(2, fill=i) for i in range(2)])
    store.add([past(2, fill=i) for i in range(2, 5)])
    assert sorted(int(p.completion_ids[0]) for p in store.draw(9, random.Random(0))) == [2, 3, 4]
    other = Aggregate(2)
    other.load_state_dict(store.state_dict())
    assert sorted(int(p.completion_ids[0]) for p in other.draw(9, random.Random(0))) == [3, 4]
    with pytest.raises(ValueError, match="replay_capacity"):
        Aggregate(0)


def test_importance_is_the_prefixs_probability_ratio_up_to_a_limit():
    now = torch.tensor([[math.log(0.5), math.log(0.9), math.log(0.1)]])
    then = torch.tensor([[math.log(0.25), math.log(0.9), math.log(0.2)]])
    mask = torch.tensor([[True, True, True]])
    assert prefix_importance(now, then, mask, 10.0).tolist()[0] == pytest.approx([1, 2, 2])
    assert prefix_importance(now, then, mask, 1.5).tolist()[0] == pytest.approx([1, 1.5, 1.5])
    # A tool's output was not sampled: it neither counts nor changes what comes after.
    assert prefix_importance(now, then, torch.tensor([[True, False, True]]), 10.0).tolist()[0] == pytest.approx(
        [1, 0, 2]
    )


def test_importance_corrects_past_states_to_todays_policy():
    """Exactly, by enumeration: E_then[w_t f(s_t)] = E_now[f(s_t)] for two-step sequences of a random policy pair."""
    torch.manual_seed(0)
    now, then = torch.randn(2, 3, 3).log_softmax(-1).double(), torch.randn(2, 3, 3).log_softmax(-1).double()
    value = torch.randn(3)  # of the state after the first token
    a = torch.arange(3)
    logp_now, logp_then = now[0, 0, a], then[0, 0, a]
    second = torch.zeros(3, dtype=torch.double)
    both = [torch.stack([logp, second], 1) for logp in (logp_now, logp_then)]
    count = prefix_importance(*both, torch.ones(3, 2).bool(), 1e9)
    mean = (logp_then.exp() * count[:, 1] * value).sum()
    assert float(mean) == pytest.approx(float((logp_now.exp() * value).sum()))


def test_padding_is_left_of_prompts_and_right_of_completions():
    batch = pad_rollouts([past(3, prompt=1), past(1, prompt=2, k=2)], pad=7)
    assert batch["prompt_ids"].tolist() == [[7, 9], [9, 9]]
    assert batch["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert batch["completion_ids"].tolist() == [[1, 1, 1], [1, 7, 7]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["weights"][0, 0].tolist() == [0, -math.inf]
    assert batch["query_weight"].tolist() == [[1, 1, 1], [1, 0, 0]]
