"""A sampler with a known bias: the corrected loss has the gradient of the policy's own rollouts, by listing every rollout.

The policy and its teacher are tables of logits. The sampler has the policy's logits with another temperature and a bias, as an
engine with other kernels would, only larger. Rollouts weigh as the sampler draws them.
"""

import itertools

import pytest
import torch
from tests.methods.batches import make_batch

from errata import methods
from errata.methods.base import Scores
from errata.ops.divergence import divergence
from errata.ops.scores import Head, Objective, TokenScores
from errata.training.batch import GenerationBatch, LocalSignals, TeacherOutputs, TokenBatch
from errata.training.loss import Averaging, LossSettings, two_stream_loss
from errata.training.scoring import TeacherValues

V, T = 3, 3
STATES = sum(V**t for t in range(T))
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))
MASK = torch.ones(1, T).bool()


def tables(seed):
    """(S,V) logits of the policy, its teacher and the sampler, one row for each prefix."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher, noise = (torch.randn(STATES, V, generator=generator) for _ in range(3))
    return student, teacher, 0.6 * student + 0.5 * noise


def states(sequence):
    """(T,) row of the state that chooses each token."""
    found, index, first = [], 0, 0
    for t in range(T):
        found.append(first + index)
        first += V**t
        index = index * V + int(sequence[t])
    return torch.tensor(found)


def logp(table, sequence):
    """(T,) of the sequence's tokens."""
    return table[states(sequence)].log_softmax(-1).gather(-1, sequence[:, None])[:, 0]


def exact(student, teacher):
    """Gradient of E_{y~policy} sum_t CE_t."""
    table = student.clone().double().requires_grad_()
    total = 0
    for y in SEQUENCES:
        ce = divergence(table[states(y)][None], teacher[states(y)][None].double(), "forward_ce").sum()
        total = total + logp(table, y).sum().exp() * ce
    return torch.autograd.grad(total, table)[0].float()


def corrected(student, teacher, sampler, ratio_of, weight_of=lambda ratio: torch.ones(T), groups=1, **settings):
    """The gradient that the loss has on average over the sampler's groups of rollouts.

    ``ratio_of`` maps the tokens' ratios (T,) to the correction; ``weight_of`` maps them to what the test weighs tokens with.
    """
    method = methods.get("distil-exact", cost="ce", credit_limit=None, **settings)
    table = student.clone().requires_grad_()
    averaging = Averaging("dr_grpo", T, accumulation=1, steps_per_generation=1, processes=1)
    loss_settings = LossSettings(Objective(), 1.0, routed=False)
    total = torch.zeros_like(student)
    for rows in itertools.product(range(len(SEQUENCES)), repeat=groups):
        ys = SEQUENCES[list(rows)]
        ratios = [(logp(student, y) - logp(sampler, y)).exp() for y in ys]
        drawn = torch.stack([logp(sampler, y).sum() for y in ys]).sum().exp()
        at = torch.stack([states(y) for y in ys])
        hidden, its = torch.eye(STATES)[at], torch.eye(STATES)[at]
        mask = MASK.expand(groups, T)
        ratio = torch.stack([ratio_of(r) for r in ratios]) if ratio_of else None
        ce = divergence(student[at], teacher[at], "forward_ce")
        entropy = torch.zeros_like(ce)
        scores = Scores(TokenScores(entropy, entropy, entropy, entropy, ce), TokenScores._fields, "Test")
        signals = method.signals(make_batch(mask, scores, sampler_ratio=ratio))
        weight = torch.stack([weight_of(r) for r in ratios])
        count = torch.tensor(float(groups * T))
        local = LocalSignals(signals.advantage, signals.rl_weight * weight, signals.sd_weight * weight, count, count)
        ids = mask.long()
        tokens = TokenBatch(ids, ids, ys, ids, mask, torch.zeros(groups), sampler_ratio=ratio)
        batch = GenerationBatch([], [], [], tokens, TeacherOutputs.none(groups))
        loss, _ = two_stream_loss(
            hidden,
            Head(table.t()),
            batch,
            TeacherValues(its, Head(teacher.t()), mask, None),
            local,
            loss_settings,
            averaging,
        )
        total += drawn * torch.autograd.grad(loss, table)[0]
    return total * T  # dr_grpo divides by the longest rollout


def whole(ratio):
    return ratio.prod()[None]


def before(ratio):
    """(T,) ratio of each token's prefix."""
    return torch.cat([torch.ones(1), ratio[:-1].cumprod(0)])


@pytest.mark.parametrize("seed", range(3))
def test_a_ratio_of_rollouts_gives_the_policys_own_gradient(seed):
    student, teacher, sampler = tables(seed)
    true = exact(student, teacher)
    found = corrected(student, teacher, sampler, whole, baseline="none")
    torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)
    biased = corrected(student, teacher, sampler, None, baseline="none")
    assert (biased - true).norm() > 0.1 * true.norm()


@pytest.mark.slow  # 729 pairs
def test_a_baseline_from_another_rollout_changes_nothing_on_average():
    student, teacher, sampler = tables(0)
    found = corrected(student, teacher, sampler, whole, groups=2)
    torch.testing.assert_close(found, exact(student, teacher), atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_ratio_of_tokens_is_exact_given_the_state(seed):
    """Weighing each token with its prefix's ratio, which TRL's token modes leave out, the rest must be exact."""
    student, teacher, sampler = tables(seed)
    true = exact(student, teacher)
    found = corrected(student, teacher, sampler, lambda r: r, before, baseline="none")
    torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


def test_without_the_ratio_of_later_tokens_the_credit_would_be_biased(monkeypatch):
    student, teacher, sampler = tables(0)
    true = exact(student, teacher)
    monkeypatch.setattr(methods.Batch, "token_ratio", None)
    found = corrected(student, teacher, sampler, lambda r: r, before, baseline="none")
    assert (found - true).norm() > 0.02 * true.norm()


def test_the_own_policy_as_sampler_needs_no_correction():
    student, teacher, _ = tables(1)
    plain = corrected(student, teacher, student, None, baseline="none")
    for ratio_of in (whole, lambda r: r):
        torch.testing.assert_close(corrected(student, teacher, student, ratio_of, baseline="none"), plain)


@pytest.mark.parametrize("shape", [(1, 1), (1, T)])
def test_a_divergence_is_multiplied_by_the_ratio_of_the_rollout_alone(shape):
    student, teacher, _ = tables(2)
    y = SEQUENCES[5]
    at = states(y)[None]
    ratio = torch.full(shape, 2.0)
    ids = MASK.long()
    zero, one = torch.zeros(1, T), torch.ones(1, T)
    count = torch.tensor(float(T))

    def loss(ratio):
        tokens = TokenBatch(ids, ids, y[None], ids, MASK, torch.zeros(1), sampler_ratio=ratio)
        return two_stream_loss(
            torch.eye(STATES)[at],
            Head(student.t()),
            GenerationBatch([], [], [], tokens, TeacherOutputs.none(1)),
            TeacherValues(torch.eye(STATES)[at], Head(teacher.t()), MASK, None),
            LocalSignals(zero, zero, one, count, count),
            LossSettings(Objective(), 1.0, routed=False),
            Averaging("dapo", T, accumulation=1, steps_per_generation=1, processes=1),
        )[0]

    torch.testing.assert_close(loss(ratio), loss(None) * (2.0 if shape == (1, 1) else 1.0))
