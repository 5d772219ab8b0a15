"""Estimators on enumerated batches: against autograd of the expectation itself, plain loops, and larger groups."""

import math
from dataclasses import replace

import pytest
import torch

from errata.ops.credit import center
from errata.theory.estimators import exact
from errata.theory.gradients import (
    Estimator,
    expectation,
    expected_gradient,
    groups,
    loss,
    moments,
    random_policies,
    random_world,
    rollout_gradients,
)
from errata.theory.tabular import (
    disagreement,
    full_tree,
    gradient,
    log_likelihood,
    neutral_objective,
    objective,
    stopping_tree,
)

TREES = [full_tree(3, 3), stopping_tree(3, 3)]


@pytest.mark.parametrize("t", TREES, ids=["full", "stopping"])
@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
@pytest.mark.parametrize("cost", ["ce", "kl"])
def test_sum_is_the_exact_gradient_of_its_objective(t, baseline, cost):
    w, z = random_policies(t, seed=3)
    estimate = expected_gradient(w, z, Estimator("sum", cost, baseline))
    torch.testing.assert_close(estimate, exact(w, z, cost), rtol=0, atol=1e-12)


def test_at_one_length_costs_may_be_centred_before_the_sum():
    """``per_token`` is then the exact gradient, and its objective the whole one."""
    w, z = random_policies(full_tree(3, 3), seed=3)
    target = exact(w, z, "kl")
    estimate = expected_gradient(w, z, Estimator(baseline="per_token"))
    torch.testing.assert_close(estimate, target, rtol=0, atol=1e-12)
    fixed = gradient(lambda s: neutral_objective(w, s), z)
    torch.testing.assert_close(fixed, target, rtol=0, atol=1e-12)


def test_centred_costs_leave_out_what_comes_of_length():
    """On rollouts that may stop the estimate goes to the gradient at fixed lengths as groups grow, not to the whole one.

    What is missing is the share of tokens that no other response reaches, (1 - P_i)^(G-1).
    """
    w, z = random_policies(stopping_tree(3, 3), seed=3)
    fixed, whole = gradient(lambda s: neutral_objective(w, s), z), exact(w, z, "kl")
    local = gradient(lambda s: objective(w, s, "forward_kl", states_from=z), z)
    p, t = log_likelihood(w.tree, z).exp(), w.tree
    alive = p @ t.mask.double()
    mean = p @ (disagreement(w, z, "forward_kl")[0, t.state] * t.mask) / alive
    assert (whole - fixed).norm() > 0.1 * fixed.norm()

    def missing(size):
        share = alive * (1 - (1 - alive) ** (size - 1))

        def reached(s):
            weight = log_likelihood(t, s).exp()
            excess = (disagreement(w, z, "forward_kl")[0, t.state] - mean) * t.mask
            return (share / alive) @ (weight @ excess)

        return local + gradient(reached, z)

    for size in (2, 4):
        rows = groups(w, z, size)
        estimate = expectation(rows, rollout_gradients(rows, Estimator(baseline="per_token")), z)
        torch.testing.assert_close(estimate, missing(size), rtol=0, atol=1e-12)
    assert (missing(50) - fixed).norm() < 1e-4 * fixed.norm()


def test_no_credit_is_the_local_term_alone():
    w, z = random_world(3, 3, seed=1)
    local = gradient(lambda s: objective(w, s, states_from=z), z)
    torch.testing.assert_close(expected_gradient(w, z, Estimator("none")), local, rtol=0, atol=1e-12)


def test_several_experts_are_averaged():
    w, z = random_policies(full_tree(2, 3), seed=5, experts=3)
    w = replace(w, feedback=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    torch.testing.assert_close(expected_gradient(w, z, Estimator()), exact(w, z, "kl"), rtol=0, atol=1e-12)


def test_position_shrinks_the_future_term_by_one_nth():
    w, z = random_world(3, 3, seed=2)
    local, whole = expected_gradient(w, z, Estimator("none")), expected_gradient(w, z, Estimator())
    estimate = expected_gradient(w, z, Estimator(baseline="position", batch=5))
    torch.testing.assert_close(estimate, local + 0.8 * (whole - local), rtol=0, atol=1e-12)


def test_position_over_one_problem_is_leave_one_out_times_one_less_one_nth():
    cost = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, group = torch.ones(5, 4, dtype=torch.bool), torch.zeros(5, dtype=torch.long)
    left_out = center(cost, mask, group, baseline="leave_one_out")
    torch.testing.assert_close(center(cost, mask, group, baseline="position"), 0.8 * left_out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("credit", ["sum", "mean", "reweight"])
def test_a_rollouts_loss_is_that_of_a_plain_loop(credit):
    w, z = random_policies(stopping_tree(3, 4), seed=7)
    rows = groups(w, z, 1)
    values = loss(rows, Estimator(credit, "kl", "none", discount=0.5)).detach()
    log_pi, log_t = z.log_softmax(-1).tolist(), w.expert[0].log_softmax(-1).tolist()
    for n, y in enumerate(w.tree.rollouts()):
        states = [w.tree.prefixes.index(y[:t]) for t in range(len(y))]
        q = [[math.exp(lp) for lp in log_t[s]] for s in states]
        ce = [-sum(p * lp for p, lp in zip(q[t], log_pi[s], strict=True)) for t, s in enumerate(states)]
        kl = [sum(p * (a - b) for p, a, b in zip(q[t], log_t[s], log_pi[s], strict=True)) for t, s in enumerate(states)]
        total = 0.0
        for t in range(len(y)):
            future = sum(0.5 ** (i - t - 1) * kl[i] for i in range(t + 1, len(y)))
            if credit != "sum":
                future /= max(len(y) - t - 1, 1)
            total += ce[t] * (1 + future) if credit == "reweight" else ce[t] + future  # surrogate: -rho*A with rho = 1
        assert float(values[n]) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("estimator", [Estimator(), Estimator("mean", "ce"), Estimator("sum", "ce", "none")], ids=str)
def test_moments_from_pairs_are_those_of_every_group_of_three(estimator):
    w, z = random_policies(full_tree(2, 2), seed=11)
    m = moments(w, z, estimator)
    rows = groups(w, z, 3)
    g = torch.zeros(len(rows.group), *z.shape, dtype=torch.float64)
    g.scatter_add_(1, rows.state[..., None].expand(-1, -1, z.shape[1]), rollout_gradients(rows, estimator))
    mean_of_three = g.view(-1, 3, *z.shape).mean(1)
    p = rows.weight[::3]
    mean = torch.einsum("n,nsv->sv", p, mean_of_three)
    variance = float(p @ mean_of_three.square().sum((-1, -2)) - mean.square().sum())
    torch.testing.assert_close(mean, m.mean, rtol=0, atol=1e-12)
    assert variance == pytest.approx(m.variance(3), abs=1e-12)


def test_moments_of_ragged_groups_are_refused():
    w, z = random_policies(stopping_tree(2, 3), seed=0)
    with pytest.raises(ValueError, match="differ in length"):
        moments(w, z, Estimator())
    assert moments(w, z, Estimator(baseline="none")).variance(8) > 0


def test_a_groups_probabilities_sum_to_one():
    w, z = random_policies(full_tree(2, 2), seed=0, experts=2)
    rows = groups(w, z, 2)
    assert rows.student.shape == (2 * 16 * 2, 2, 2)
    assert float(rows.weight[::2].sum()) == pytest.approx(1.0, abs=1e-12)
    assert rows.group.bincount().tolist() == [2] * 32


def test_moments_of_several_experts_are_refused():
    with pytest.raises(ValueError, match="one feedback, got 2"):
        moments(*random_policies(full_tree(2, 2), seed=0, experts=2), Estimator())


def test_alignment_is_the_cosine_once_noise_is_gone():
    w, z = random_world(3, 3, seed=0)
    target = exact(w, z)
    m = moments(w, z, Estimator("mean", "ce"))
    cosine = float((m.mean * target).sum() / m.mean.norm() / target.norm())
    assert m.alignment(target, 8) < m.alignment(target, 64) < cosine
    assert m.alignment(target, 10**9) == pytest.approx(cosine, abs=1e-6)
