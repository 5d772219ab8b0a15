"""DistIL's signals against the true gradient of L(theta) = E_{y~student} sum_t CE_t, by enumerating every sequence."""

import itertools
import statistics

import pytest
import torch
from tests.methods.batches import make_batch

from errata import methods
from errata.ops.divergence import divergence
from errata.ops.scores import TokenScores

V = 3


class Tabular:
    """One row of logits for each prefix; prefixes of equal length are numbered as base-V digits."""

    def __init__(self, length, generator, scale):
        self.tables = [scale * torch.randn(V**t, V, generator=generator, dtype=torch.float64) for t in range(length)]

    def logits(self, sequences):
        index = torch.zeros(len(sequences), dtype=torch.long)
        rows = []
        for t, table in enumerate(self.tables):
            rows.append(table[index])
            index = index * V + sequences[:, t]
        return torch.stack(rows, dim=1)


def cosines(length, seed, **settings):
    """Cosine of the expected estimator with the true gradient, on one random problem."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = Tabular(length, generator, 1.0), Tabular(length, generator, 1.0)
    for table in student.tables:
        table.requires_grad_()
    sequences = torch.tensor(list(itertools.product(range(V), repeat=length)))
    logits, expert = student.logits(sequences), teacher.logits(sequences)
    logp = logits.log_softmax(-1).gather(-1, sequences[..., None])[..., 0]
    cross_entropy = divergence(logits, expert, "forward_ce")
    probability = logp.sum(1).exp()
    true = torch.autograd.grad((probability * cross_entropy.sum(1)).sum(), student.tables, retain_graph=True)

    entropy = -(expert.softmax(-1) * expert.log_softmax(-1)).sum(-1)
    mask = torch.ones(sequences.shape).bool()
    detached = TokenScores(logp.detach(), logp.detach(), entropy, entropy, cross_entropy.detach())
    batch = make_batch(mask, detached)
    signals = methods.get("distil-exact", baseline="none", cost="ce", **settings).signals(batch)
    per_token = -signals.rl_weight * signals.advantage * logp + signals.sd_weight * cross_entropy
    found = torch.autograd.grad((probability.detach() * per_token.sum(1)).sum(), student.tables)
    a, b = torch.cat([g.flatten() for g in true]), torch.cat([g.flatten() for g in found])
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("length", [3, 4, 5])
def test_sum_is_the_exact_gradient(length):
    assert min(cosines(length, seed, credit="sum") for seed in range(5)) > 0.9999


@pytest.mark.parametrize("credit", ["none", "mean", "reweight"])
def test_the_other_credits_are_not(credit):
    assert statistics.mean(cosines(4, seed, credit=credit) for seed in range(5)) < 0.995


def test_kl_cost_is_exact_for_its_own_objective():
    """With cost kl the objective is E sum KL: its gradient differs from E sum CE's by that of the expected teacher entropy."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = Tabular(3, generator, 1.0), Tabular(3, generator, 1.0)
    for table in student.tables:
        table.requires_grad_()
    sequences = torch.tensor(list(itertools.product(range(V), repeat=3)))
    logits, expert = student.logits(sequences), teacher.logits(sequences)
    logp = logits.log_softmax(-1).gather(-1, sequences[..., None])[..., 0]
    kl = divergence(logits, expert, "forward_kl")
    probability = logp.sum(1).exp()
    true = torch.autograd.grad((probability * kl.sum(1)).sum(), student.tables, retain_graph=True)
    entropy = -(expert.softmax(-1) * expert.log_softmax(-1)).sum(-1)
    mask = torch.ones(27, 3).bool()
    scores = TokenScores(logp.detach(), logp.detach(), entropy, entropy, kl.detach() + entropy)
    batch = make_batch(mask, scores)
    signals = methods.get("distil-exact", baseline="none").signals(batch)
    per_token = -signals.rl_weight * signals.advantage * logp + signals.sd_weight * kl
    found = torch.autograd.grad((probability.detach() * per_token.sum(1)).sum(), student.tables)
    for a, b in zip(true, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
