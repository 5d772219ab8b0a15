"""What a token's loss is divided by, for fresh rollouts and for past ones beside them."""

from types import SimpleNamespace

import pytest
import torch
from tests.training.worlds import trainer

from errata.ops.reduce import KINDS
from errata.ops.scores import TokenScores
from errata.training.loss import Learner
from errata.training.teacher_pass import generated

FRESH = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


def learner(kind, accumulation=2):
    return Learner(
        SimpleNamespace(
            loss_type=kind,
            max_completion_length=10,
            current_gradient_accumulation_steps=accumulation,
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(steps_per_generation=4),
            accelerator=SimpleNamespace(num_processes=2),
        )
    )


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
    found = learner(kind)._token_weights(FRESH, torch.tensor(40.0))
    torch.testing.assert_close(found, FRESH * torch.tensor(expected)[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[0], [1, 0], [1, 1, 0, 0, 1]])
def test_a_past_rollout_weighs_as_it_would_among_the_fresh(kind, rows):
    one, count = learner(kind), torch.tensor(40.0)
    torch.testing.assert_close(one._token_weights(FRESH[rows], count, FRESH), one._token_weights(FRESH, count)[rows])


@pytest.mark.parametrize("method", ["srpo", "drift", "distil"])
def test_scores_at_few_tokens_of_few_fields_are_those_of_all(tmp_path, method):
    t = trainer(tmp_path, method, max_steps=1, method_args={"warmup_steps": 0} if method == "drift" else {})
    batches, original = [], t.on_rollouts

    def spy(inputs, batch):
        batches.append(original(inputs, batch))
        return batches[-1]

    t.on_rollouts = spy
    t.train()
    (batch,) = batches
    everything = t.learner.scored(batch, TokenScores._fields)
    at = generated(batch) & batch["has_teacher"][:, None] & (torch.arange(batch["completion_ids"].shape[1]) % 3 > 0)
    some = t.learner.scored(batch, t.method.reads, at)
    assert at.any()
    for name in t.method.reads:
        torch.testing.assert_close(getattr(some, name)[at], getattr(everything, name)[at], rtol=1e-5, atol=1e-6)
