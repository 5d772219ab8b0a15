"""The exact world: enumeration against hand-worked trees, naive loops and finite differences."""

import math
import subprocess
import sys

import pytest
import torch

from errata.theory.gradients import random_policies
from errata.theory.mdp import hidden_bit
from errata.theory.regret import random_problem
from errata.theory.tabular import (
    action_values,
    expert_value,
    full_tree,
    gradient,
    log_likelihood,
    objective,
    posterior_expert,
    stopping_tree,
    tree,
    value,
    visits,
    world,
)


def test_a_full_tree_lists_every_rollout_and_every_prefix():
    t = full_tree(2, 2)
    assert t.rollouts() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert t.prefixes == ((), (0,), (1,))
    assert t.state.tolist() == [[0, 1], [0, 1], [0, 2], [0, 2]]


def test_a_stopping_tree_ends_with_the_stop_token_or_at_the_horizon():
    t = stopping_tree(2, 3)
    assert sorted(t.rollouts()) == [(0,), (1, 0), (1, 1, 0), (1, 1, 1)]
    assert t.mask.sum(1).tolist() == [1, 2, 3, 3]


def test_a_rollout_that_goes_on_after_its_end_is_refused():
    with pytest.raises(ValueError, match=r"\(0,\) is a prefix"):
        tree([(0,), (0, 1)], 2)


@pytest.mark.parametrize("t", [full_tree(3, 3), stopping_tree(3, 4)], ids=["full", "stopping"])
def test_probabilities_sum_to_one(t):
    _, student = random_policies(t, seed=1)
    assert float(log_likelihood(t, student).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(visits(t, student)[0]) == pytest.approx(1.0, abs=1e-12)


def test_actions_that_do_not_exist_have_probability_exactly_zero():
    t = tree([(0, 0), (0, 1), (1, 0)], 2)
    assert t.logits()[t.prefixes.index((1,))].softmax(-1).tolist() == [1.0, 0.0]


def test_reward_of_student_and_expert_by_hand():
    w, student = hidden_bit()
    # L is taken half the time and earns .9; R earns 1/2 for the student and 1 for the expert, who sees the bit
    assert float(value(w, student)) == pytest.approx(0.5 * 0.9 + 0.5 * 0.5)
    assert float(expert_value(w)) == pytest.approx(0.5 * 0.9 + 0.5 * 1.0)


def test_action_values_by_hand():
    w, student = hidden_bit()
    q = action_values(w, student)  # (F,S,V)
    assert q[0, 0].tolist() == pytest.approx([0.9, 0.5])
    right = w.tree.prefixes.index((1,))
    assert q[:, right].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def naive_objective(w, student):
    """Plain Python over rollouts: E_f E_y sum_t -sum_a pi_T(a) log pi_S(a)."""
    log_pi = student.log_softmax(-1).tolist()
    total = 0.0
    for f, p_f in enumerate(w.feedback.tolist()):
        pi_t = w.expert[f].softmax(-1).tolist()
        for y in w.tree.rollouts():
            states = [w.tree.prefixes.index(y[:t]) for t in range(len(y))]
            p = math.exp(sum(log_pi[s][a] for s, a in zip(states, y, strict=True)))
            total += p_f * p * sum(-sum(q * lp for q, lp in zip(pi_t[s], log_pi[s], strict=True)) for s in states)
    return total


def test_the_objective_is_that_of_a_plain_loop():
    w, student = random_problem(3, 3, seed=4, feedbacks=2)
    assert float(objective(w, student)) == pytest.approx(naive_objective(w, student), abs=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    w, student = random_problem(2, 3, seed=2, feedbacks=2)
    exact = gradient(lambda z: objective(w, z), student)
    step = 1e-6
    for s, a in [(0, 0), (1, 1), (2, 0), (6, 1)]:
        bumped = torch.zeros_like(student)
        bumped[s, a] = step
        slope = (naive_objective(w, student + bumped) - naive_objective(w, student - bumped)) / (2 * step)
        assert float(exact[s, a]) == pytest.approx(slope, abs=1e-8)


def test_told_to_succeed_a_policy_is_its_own_posterior():
    w, student = random_problem(3, 3, seed=0)
    success = (w.reward[0] > 0.5).double()
    sure = world(w.tree, success, posterior_expert(world(w.tree, success, w.expert), student))
    p = log_likelihood(w.tree, student).exp() * success
    assert log_likelihood(w.tree, sure.expert[0]).exp().tolist() == pytest.approx((p / p.sum()).tolist(), abs=1e-12)
    assert float(expert_value(sure)) == pytest.approx(1.0, abs=1e-12)


def test_importing_the_laboratory_loads_no_torch():
    code = "import sys, errata.theory; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
