"""The numbers of docs/theory.md, to 1e-4, and the expected result of every claim."""

import math

import pytest
import torch

from errata.ops.divergence import divergence
from errata.theory import bandit, estimators, mdp, monotone, pass_at_n, regret
from errata.theory.tabular import expert_value, full_tree, objective, value, world


def unexpected(part):
    return [c.statement for c in part.claims if c.holds != c.expected]


# 1. bandit


@pytest.mark.parametrize(
    ("kind", "natural", "softmax"),
    [("reverse_kl", -0.1582, -0.0787), ("js", -0.0065, -0.0082), ("forward_ce", 0.1500, 0.0087)],
)
def test_the_counter_example(kind, natural, softmax):
    change = bandit.example(kind)
    assert change["natural"] == pytest.approx(natural, abs=1e-4)
    assert change["softmax"] == pytest.approx(softmax, abs=1e-4)


def test_a_natural_step_is_that_of_the_pseudo_inverse_of_the_fisher_matrix():
    reward, student, expert = bandit.rows(bandit.REWARD, bandit.STUDENT, bandit.EXPERT)
    for kind in ("forward_ce", "reverse_kl", "js"):
        logits = student.log().requires_grad_(True)
        (g,) = torch.autograd.grad(divergence(logits[:, None], expert.log()[:, None], kind).sum(), logits)
        p = student[0]
        fisher = torch.diag(p) - torch.outer(p, p)
        step = -torch.linalg.pinv(fisher) @ g[0]
        change = float(reward[0] @ (fisher @ step))
        assert bandit.example(kind)["natural"] == pytest.approx(change, abs=1e-9)


def test_random_bandits_have_a_better_expert():
    for tilted in (False, True):
        reward, student, expert = bandit.random_bandits(4, 500, tilted=tilted)
        assert len(reward) > 50
        assert bool(((reward * expert).sum(-1) > (reward * student).sum(-1)).all())


def test_the_flow_of_natural_cross_entropy_closes_the_gap_exponentially():
    times, values = bandit.flow("forward_ce", "natural", length=2.0, rate=0.001)
    assert values[0] == pytest.approx(0.30)
    assert values[-1] == pytest.approx(0.45 - 0.15 * math.exp(-times[-1]), abs=1e-3)


# 2. monotone


def test_the_identities_hold_to_rounding():
    assert max(monotone.identity_errors(arms=5).values()) < 1e-9


def test_a_plain_step_lowers_reward_by_hand():
    # dlogit = pi_T - pi = (.05, .25, -.30); dJ = pi_1 (dlogit_1 - sum pi dlogit) = .1 (.05 - .065)
    change = bandit.change_of_reward(*(x.clamp_min(1e-300) for x in bandit.rows(*monotone.SOFTMAX_CASE)), "forward_ce")
    assert float(change["softmax"]) == pytest.approx(-0.0015, abs=1e-12)
    assert float(change["natural"]) == pytest.approx(0.05, abs=1e-12)


def test_what_only_the_expert_sees_lowers_reward_by_hand():
    w, z = monotone.hidden_answer()
    # dpi = (.5, .5, 0) - (.1, .1, .8); each guess is worth .5, the safe action .6
    change = monotone.first_order(w, z, monotone.natural_direction(w, z))
    assert change == pytest.approx(0.4 * 0.5 + 0.4 * 0.5 - 0.8 * 0.6, abs=1e-9)


def test_an_unfinished_skill_lowers_reward_by_hand():
    w, z = monotone.unfinished_skill()
    # s1: (.9, -.9) on Q = (.1, .5); s2, visited one time in ten: (.9, -.9) on (1, 0)
    change = monotone.first_order(w, z, monotone.natural_direction(w, z))
    assert change == pytest.approx(0.9 * (0.1 - 0.5) + 0.1 * 0.9, abs=1e-9)
    assert float(value(w, z)) < float(expert_value(w))


# 3. two steps


def test_the_future_of_the_first_token():
    future = mdp.future_of_first_token(*mdp.hidden_bit(), "ce")
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert future["L"] == pytest.approx(entropy, abs=1e-4) == pytest.approx(0.325, abs=1e-3)
    assert future["R"] == pytest.approx(math.log(2), abs=1e-4)
    assert mdp.future_of_first_token(*mdp.hidden_bit(), "kl") == pytest.approx({"L": 0, "R": math.log(2)}, abs=1e-9)
    assert mdp.future_of_first_token(*mdp.eight_ways(), "ce") == pytest.approx({"L": math.log(8), "R": 0}, abs=1e-9)


@pytest.mark.parametrize("kind", ["forward_ce", "reverse_kl", "js"])
def test_no_local_gradient_at_the_first_step(kind):
    assert mdp.local_gradient(*mdp.hidden_bit(), kind) == pytest.approx(0, abs=1e-12)


def test_the_pull_to_the_left_by_hand():
    # two actions at 1/2 each: dp_L = p^2 ... = 1/4 * 1/2 * (C_R - C_L), since dlogit_L = -p_L (C_L - mean C)
    cases = {
        ("hidden_bit", "kl"): math.log(2) / 8,
        ("eight_ways", "ce"): -math.log(8) / 8,
        ("eight_ways", "kl"): 0.0,
        ("matter_of_taste", "kl"): -math.log(8) / 8,
    }
    for (name, cost), pull in cases.items():
        assert mdp.pull_to_left(*mdp.CASES[name], cost) == pytest.approx(pull, abs=1e-9)


def test_a_perfect_student_moves_under_ce_only():
    w, z = mdp.essay()
    assert mdp.largest_gradient(w, z, "kl") < 1e-12
    assert mdp.largest_gradient(w, z, "ce") > 0.01


def test_an_expert_with_a_secret_shortens_answers_unless_lengths_are_held_fixed():
    secret = mdp.compute()["secret_bit"]
    assert secret["exact"]["tokens"] == pytest.approx([5.217, 2.796], abs=1e-3)
    assert secret["exact"]["J"] == pytest.approx([0.6561, 0.2213], abs=1e-4)
    assert secret["neutral"]["tokens"] == pytest.approx([5.217, 5.217], abs=1e-3)
    assert secret["neutral"]["J"] == pytest.approx([0.6561, 0.6561], abs=1e-4)


# 4. regret


def test_the_bound_in_a_bandit_by_hand():
    t = full_tree(2, 1)
    w = world(t, torch.tensor([1.0, 0.0], dtype=torch.float64), t.logits({(): (0.9, 0.1)}))
    z = t.logits({(): (0.5, 0.5)})
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert regret.span(w) == pytest.approx(1.0)
    assert regret.gap(w, z) == pytest.approx(0.4)
    assert regret.bound(w, z) == pytest.approx(math.sqrt(kl / 2))


@pytest.mark.parametrize("feedbacks", [1, 3])
def test_the_bound_holds(feedbacks):
    for seed in range(20):
        w, z = regret.random_problem(2, 4, 1000 + seed, feedbacks=feedbacks)
        assert regret.gap(w, z) <= regret.bound(w, z)


# 5. pass@N


def test_the_series_of_the_logarithm():
    assert pass_at_n.series(0.3, 200) == pytest.approx(math.log(0.3), abs=1e-9)
    assert pass_at_n.series(0.3, 1) == pytest.approx(-0.7)


def test_what_the_student_never_reaches_is_not_counted():
    w, z = pass_at_n.misled()
    assert -math.log(float(value(w, z))) == pytest.approx(2 * math.log(100))
    assert pass_at_n.sequence_kl(w, z) == pytest.approx(2 * math.log(100))
    # the second step counts one time in a hundred; off the path expert and student are a coin
    assert float(objective(w, z, "forward_kl")) == pytest.approx(1.01 * math.log(100))


def test_pass_at_n_by_hand():
    w, _ = pass_at_n.answers()
    z = w.tree.logits({(): (0.5, 0.5), (0,): (1.0,), (1,): (0.0, 1.0)})
    # A is right in .4 of problems and said half the time, B likewise in .3
    assert pass_at_n.pass_at(w, z, 2) == pytest.approx(0.7 * 0.75)


# all claims


@pytest.mark.parametrize("part", [bandit, monotone, mdp, regret, pass_at_n], ids=lambda m: m.__name__.split(".")[-1])
def test_every_claim_comes_out_as_expected(part):
    assert unexpected(part.study()) == []


@pytest.fixture(scope="module")
def cosines():
    return estimators.cosine_table()


@pytest.mark.parametrize(
    ("horizon", "none", "mean", "reweight"), [(3, 0.93, 0.99, 0.91), (4, 0.95, 0.985, 0.945), (5, 0.91, 0.96, 0.90)]
)
def test_the_cosine_table(cosines, horizon, none, mean, reweight):
    row = cosines[horizon]
    assert row["sum"] == pytest.approx(1.0, abs=1e-9)
    assert row["none"] == pytest.approx(none, abs=0.02)
    assert row["mean"] == pytest.approx(mean, abs=0.02)
    assert row["reweight"] == pytest.approx(reweight, abs=0.02)


def test_ones_own_trace_needs_the_earlier_costs_too():
    trace = estimators.own_trace(0)
    assert trace["later"] < 0.999
    assert trace["all"] == pytest.approx(1.0, abs=1e-9)


def test_leave_one_out_is_biased_where_responses_teach_each_other():
    assert estimators.sibling(0, "none") == pytest.approx(0, abs=1e-9)
    assert estimators.sibling(0, "leave_one_out") > 0.05


def test_lengths_bias_only_what_divides_by_them():
    assert estimators.lengths(0, per_length=False) == pytest.approx(0, abs=1e-9)
    assert estimators.lengths(0, per_length=True) > 0.05


def test_the_default_is_unbiased_and_among_the_quietest():
    worlds = [estimators.random_world(3, 3, seed) for seed in range(4)]
    table = {e: estimators.qualities(e, worlds) for e in estimators.EVERY}
    default = table[estimators.Estimator("sum", "kl", "leave_one_out")]
    assert default["bias"] < 1e-9
    unbiased = [q["noise"] for q in table.values() if q["bias"] < 1e-9]
    assert len(unbiased) == 4  # sum with ce and kl, with leave-one-out and without
    assert default["noise"] < 1.15 * min(unbiased)


@pytest.mark.slow
def test_every_claim_about_estimators_comes_out_as_expected():
    assert unexpected(estimators.study()) == []
