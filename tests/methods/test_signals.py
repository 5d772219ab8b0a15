"""What each method decides, on batches small enough to work by hand."""

import math
from dataclasses import replace

import pytest
import torch
from tests.methods.batches import all_scores, make_batch

from errata import methods
from errata.methods import Scores
from errata.ops.scores import TokenScores

LOG2 = math.log(2)


def batch(**changes):
    """Two problems x two rollouts of at most three tokens. Rollouts 0 and 2 succeeded."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    zero = torch.zeros(4, 3)
    values = {
        "mask": mask,
        "scores": TokenScores(zero, zero, zero, zero, zero),
        "reward": torch.tensor([1.0, 0.0, 1.0, 0.0]),
        "advantage": torch.tensor([0.5, -0.5, 0.5, -0.5]),
        "group": torch.tensor([0, 0, 1, 1]),
        "has_teacher": torch.tensor([False, True, False, True]),
        "has_context": torch.tensor([False, True, False, True]),
        "success": torch.tensor([True, False, True, False]),
    }
    return make_batch(**{**values, **changes})


def rows(tensor):
    return [[round(x, 5) for x in row] for row in tensor.tolist()]


def test_grpo_gives_every_token_its_groups_advantage():
    signals = methods.get("grpo").signals(batch())
    assert rows(signals.advantage) == [[0.5, 0.5, 0.5], [-0.5, -0.5, 0], [0.5, 0.5, 0.5], [-0.5, 0, 0]]
    assert rows(signals.rl_weight) == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert rows(signals.sd_weight) == [[0, 0, 0]] * 4


@pytest.mark.parametrize("name", ["sdpo", "opsd"])
def test_sdpo_and_opsd_distil_where_a_teacher_saw_something(name):
    signals = methods.get(name).signals(batch())
    assert rows(signals.sd_weight) == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert rows(signals.rl_weight) == [[0, 0, 0]] * 4


def test_srpo_routes_wrong_attempts_with_a_teacher_to_distillation():
    entropy = torch.tensor([[0.0, 0, 0], [0, LOG2, 0], [0, 0, 0], [0, 0, 0]])
    zero = torch.zeros(4, 3)
    signals = methods.get("srpo").signals(batch(scores=TokenScores(zero, zero, zero, entropy, zero)))
    # exp(-H) = 1, 1/2, 1 over the three routed tokens; mean 1 means a factor 3 / 2.5.
    assert rows(signals.sd_weight) == [[0, 0, 0], [1.2, 0.6, 0], [0, 0, 0], [1.2, 0, 0]]
    assert rows(signals.rl_weight) == [[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert rows(signals.advantage)[1] == [0, 0, 0]


def test_srpo_reinforces_a_wrong_attempt_nobody_can_teach():
    signals = methods.get("srpo").signals(batch(has_teacher=torch.zeros(4).bool()))
    assert rows(signals.rl_weight) == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]


def distil_batch():
    """All four taught; CE and H_T chosen so that KL is 1, 2, 4 | 1, 1 | 3, 0, 0 | 5."""
    kl = torch.tensor([[1.0, 2, 4], [1, 1, 0], [3, 0, 0], [5, 0, 0]])
    entropy = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]])
    zero = torch.zeros(4, 3)
    everyone = torch.ones(4).bool()
    return batch(
        scores=TokenScores(zero, zero, zero, entropy, kl + entropy), has_teacher=everyone, has_context=everyone
    )


def test_distil_local_term_alone():
    signals = methods.get("distil", credit="none").signals(distil_batch())
    assert rows(signals.sd_weight) == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert rows(signals.rl_weight) == [[0, 0, 0]] * 4


def test_distil_charges_what_exceeds_the_others_at_the_same_position():
    """KL 1, 2, 4 | 1, 1 and 3, 0, 0 | 5. Rollout 0's second token costs 1 more than rollout 1's; its third has no match."""
    signals = methods.get("distil", shrink=False).signals(distil_batch())
    assert rows(-signals.advantage) == [[1, 0, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert rows(signals.rl_weight) == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_distil_looks_fifty_tokens_ahead():
    """Four rollouts of one problem: the first one's last of three tokens costs 4 more than the others'. γ = .98."""
    zero, kl = torch.zeros(4, 3), torch.zeros(4, 3)
    kl[0, 2] = 4
    everyone = torch.ones(4).bool()
    changes = {"mask": torch.ones(4, 3).bool(), "group": torch.zeros(4, dtype=torch.long), "has_teacher": everyone}
    costly = batch(scores=TokenScores(zero, zero, zero, zero, kl), **changes)
    signals = methods.get("distil", shrink=False, credit_limit=None).signals(costly)
    assert rows(-signals.advantage)[0] == [3.92, 4, 0]
    assert rows(-signals.advantage)[1] == [-1.30667, -1.33333, 0]


def test_distil_divides_a_large_credit_by_its_size():
    """Credit 3, -3 on the first of two tokens of two rollouts: root mean square 3/√2; with a limit of .5 they become ±√½."""
    zero, kl = torch.zeros(2, 2), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    two = {
        "mask": torch.ones(2, 2).bool(),
        "group": torch.zeros(2, dtype=torch.long),
        "has_teacher": torch.ones(2).bool(),
    }
    costly = batch(scores=TokenScores(zero, zero, zero, zero, kl), **two)
    assert rows(methods.get("distil", shrink=False, credit_limit=None).signals(costly).advantage) == [[-3, 0], [3, 0]]
    assert rows(methods.get("distil", shrink=False).signals(costly).advantage) == [[-0.70711, 0], [0.70711, 0]]


def test_distil_shrinks_credit_by_what_unrelated_tokens_would_give():
    """Two rollouts; one costs 2 more at its second and third token. C = 4, 2, 0 and V = 8, 4, 0: the share is 1 - 12/20 = .4."""
    zero, kl = torch.zeros(2, 3), torch.tensor([[0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    two = {
        "mask": torch.ones(2, 3).bool(),
        "group": torch.zeros(2, dtype=torch.long),
        "has_teacher": torch.ones(2).bool(),
    }
    signals = methods.get("distil", discount=1.0, credit_limit=None).signals(
        batch(scores=TokenScores(zero, zero, zero, zero, kl), **two)
    )
    assert rows(-signals.advantage) == [[1.6, 0.8, 0], [-1.6, -0.8, 0]]
    assert signals.metrics["persistent_share"] == pytest.approx(0.4)


def test_distil_exact_subtracts_the_others_remaining_sum():
    signals = methods.get("distil-exact").signals(distil_batch())
    assert rows(-signals.advantage) == [[5, 4, 0], [-5, -4, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("cost", "divergence"), [("kl", "forward_kl"), ("ce", "forward_ce")])
def test_a_top_k_cost_is_taken_on_one_support(cost, divergence):
    """The teacher's entropy is the whole vocabulary's: on a top-k support it must stay out of the cost."""
    method = methods.get("distil-exact", cost=cost, support="teacher_topk", top_k=5, baseline="none")
    assert method.divergence == divergence
    coarse = torch.tensor([[1.0, 2, 4], [1, 1, 0], [3, 0, 0], [5, 0, 0]])
    zero, entropy = torch.zeros(4, 3), torch.full((4, 3), 9.0)
    everyone = torch.ones(4).bool()
    scores = TokenScores(zero, zero, zero, entropy, coarse)
    signals = method.signals(batch(scores=scores, has_teacher=everyone))
    assert rows(-signals.advantage) == [[6, 4, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("field", "value"), [("discount", 0.0), ("discount", 1.5), ("future_weight", -1.0), ("credit_limit", 0.0)]
)
def test_distil_names_a_setting_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        methods.get("distil", **{field: value})


def test_distil_exact_credit_uncentred():
    signals = methods.get("distil-exact", baseline="none").signals(distil_batch())
    # C_t is the sum of KL strictly after t; the advantage is its negative.
    assert rows(-signals.advantage) == [[6, 4, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert rows(signals.per_token["future_credit"]) == [[6, 4, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_distil_cost_ce_counts_the_teachers_entropy():
    signals = methods.get("distil-exact", baseline="none", cost="ce").signals(distil_batch())
    assert rows(-signals.advantage) == [[7, 4.5, 0], [1.5, 0, 0], [1, 0.5, 0], [0, 0, 0]]


def test_distil_released_mean_divides_by_what_remains():
    signals = methods.get("distil-exact", credit="mean", cost="ce", baseline="none").signals(distil_batch())
    assert rows(-signals.advantage) == [[3.5, 4.5, 0], [1.5, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]


def test_distil_reweight_multiplies_the_local_term():
    signals = methods.get("distil-exact", credit="reweight", cost="ce").signals(distil_batch())
    assert rows(signals.sd_weight) == [[4.5, 5.5, 1], [2.5, 1, 0], [1.5, 1.5, 1], [1, 0, 0]]
    assert rows(signals.rl_weight) == [[0, 0, 0]] * 4


def test_distil_discount_and_future_weight():
    signals = methods.get("distil-exact", baseline="none", discount=0.5, future_weight=0.3).signals(distil_batch())
    assert rows(-signals.advantage)[0] == [4, 4, 0]  # 2 + 4/2, 4
    assert rows(signals.rl_weight)[0] == [0.3, 0.3, 0.3]


def test_distil_leave_one_out_vanishes_for_equal_costs():
    even = distil_batch()
    ones = torch.ones(4, 3) * even.mask
    zero = torch.zeros(4, 3)
    same = TokenScores(zero, zero, zero, zero, ones[[0, 0, 0, 0]])
    equal = batch(mask=torch.ones(4, 3).bool(), scores=same, has_teacher=torch.ones(4).bool())
    assert rows(methods.get("distil", shrink=False).signals(equal).advantage) == [[0, 0, 0]] * 4
    assert rows(methods.get("distil-exact").signals(equal).advantage) == [[0, 0, 0]] * 4


def test_distil_says_which_divergences_it_has():
    with pytest.raises(ValueError, match="forward_ce"):
        methods.get("distil", divergence="js")


# -- DRIFT ------------------------------------------------------------------------------------------------------------


def test_drift_warms_up_by_distillation_alone():
    signals = methods.get("drift").signals(batch(stage=1))
    assert rows(signals.sd_weight) == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert rows(signals.rl_weight) == [[0, 0, 0]] * 4


def test_drift_paper_bins():
    """Problem 0 hard, problem 1 easy; both attempts at each have a teacher."""
    everyone = torch.ones(4).bool()
    drift = methods.get("drift-paper", rhythm=False)
    signals = drift.signals(
        batch(pass_rate=torch.tensor([0.1, 0.1, 0.9, 0.9]), has_teacher=everyone, has_context=everyone)
    )
    assert rows(signals.rl_weight) == [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]
    assert rows(signals.sd_weight) == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]
    medium = drift.signals(batch(has_context=everyone))
    assert rows(medium.rl_weight)[0] == [1, 1, 1]


def test_drift_released_gates():
    everyone = torch.ones(4).bool()
    drift = methods.get("drift-released", rhythm=False)
    signals = drift.signals(
        batch(pass_rate=torch.tensor([0.3, 0.3, 0.7, 0.7]), has_teacher=everyone, has_context=everyone)
    )
    # At p = 0.3: h = 1/2, z = sigmoid(-5) = 0.0066929, medium = (1-h)(1-z) = 0.4966536, all over their sum 1.0033464.
    hard, medium, easy = 0.4983324, 0.4949971, 0.0066705
    expected = 0.05 * easy + medium + 0.3 * hard
    assert signals.rl_weight[0, 0] == pytest.approx(expected, abs=1e-5)
    assert signals.sd_weight[1, 0] == pytest.approx(0.35 * easy + hard, abs=1e-5)
    # At p = 0.7 easy and hard change places.
    assert signals.rl_weight[2, 0] == pytest.approx(0.05 * hard + medium + 0.3 * easy, abs=1e-5)
    assert signals.sd_weight[3, 0] == pytest.approx(0.35 * hard + easy, abs=1e-5)
    assert signals.metrics["routing/hard"] + signals.metrics["routing/medium"] + signals.metrics[
        "routing/easy"
    ] == pytest.approx(1, abs=1e-5)


def test_drift_falls_back_on_reward_without_a_teacher():
    nobody = torch.zeros(4).bool()
    signals = methods.get("drift", rhythm=False).signals(batch(has_teacher=nobody, has_context=nobody))
    assert rows(signals.rl_weight) == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert rows(signals.sd_weight) == [[0, 0, 0]] * 4


def test_drift_distils_hard_successes_only_where_asked():
    everyone = torch.ones(4).bool()
    hard = batch(pass_rate=torch.zeros(4), has_teacher=everyone, has_context=everyone)
    assert rows(methods.get("drift").signals(hard).sd_weight)[0] == [0, 0, 0]
    assert methods.get("drift", binary_routing=False).signals(hard).sd_weight[0, 0] == pytest.approx(0.7, abs=0.02)


def test_drift_rhythm_leaves_wrong_attempts_and_silent_teachers_alone():
    torch.manual_seed(0)
    mask = torch.ones(4, 12).bool()
    draw = torch.rand(5, 4, 12)
    scores = TokenScores(-draw[0], -4 * draw[1], draw[2], draw[3], draw[4])
    has = torch.tensor([True, True, False, True])
    signals = methods.get("drift-paper").signals(
        batch(mask=mask, scores=scores, has_teacher=has, has_context=torch.ones(4).bool())
    )
    rhythm = signals.per_token["rhythm"]
    assert bool((rhythm[0] > 1).any())
    assert float(rhythm.max()) <= 2
    assert rows(rhythm[1:]) == [[1] * 12] * 3


def anchored_scores():
    """The second of four tokens is an anchor, and the student is surer than the teacher everywhere: b_t is 1."""
    entropy, teacher_entropy = torch.full((4, 4), 2.0), torch.tensor([[2.0, 1.0, 0.0, 2.0]]).repeat(4, 1)
    return TokenScores(torch.full((4, 4), -0.1), torch.full((4, 4), -5.0), entropy, teacher_entropy, torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("settings", "betas"),
    [
        ({}, (0.0, 1.0)),  # the medium gate alone, with weight 1
        ({"bonus_hard": 0.5}, (0.5, 1.0)),
        ({"bonus_hard": 0.25, "bonus_medium": 0.0}, (0.25, 0.0)),
        ({"bonus_hard": 2.0, "bonus_medium": 0.5}, (2.0, 0.5)),
    ],
)
def test_drift_weighs_the_rhythm_bonus_by_difficulty(settings, betas):
    """Problem 0 is hard and problem 1 medium (the paper's bins). M_2 = 1 + beta * .4465, see tests/ops/test_rhythm.py."""
    everyone = torch.ones(4).bool()
    signals = methods.get("drift-paper", window=1, **settings).signals(
        batch(
            mask=torch.ones(4, 4).bool(),
            scores=anchored_scores(),
            pass_rate=torch.tensor([0.1, 0.1, 0.5, 0.5]),
            has_teacher=everyone,
            has_context=everyone,
        )
    )
    pace = signals.per_token["rhythm"]
    for row, beta in zip((0, 2), betas, strict=True):
        assert pace[row].tolist() == pytest.approx([1.0, 1 + beta * 0.446455, 1.0, 1.0], abs=1e-4)


def test_drift_opens_the_gate_by_floor_and_power():
    everyone = torch.ones(4).bool()
    parts = {"mask": torch.ones(4, 4).bool(), "scores": anchored_scores(), "has_teacher": everyone}
    one = batch(**parts, has_context=everyone)
    gate = methods.get("drift-paper", window=1, gate_floor=0.2, gate_power=2.0).signals(one).per_token["rhythm_gate"]
    assert gate[0].tolist() == pytest.approx([0.2, 0.2 + 0.8 * 0.446455**2, 0.2, 0.2], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"gate_floor": 1.1}, "gate_floor"),
        ({"gate_power": -1.0}, "gate_power"),
        ({"bonus_easy": -0.1}, "bonus_easy"),
        ({"transition_steps": -1}, "^transition_steps"),
        ({"buffer_start_step": -1}, "^buffer_start_step"),
        ({"buffer_start_epoch": -0.5}, "^buffer_start_epoch"),
        ({"buffer_min_reward": float("nan")}, "^buffer_min_reward"),
    ],
)
def test_drift_refuses_settings_out_of_range(settings, named):
    with pytest.raises(ValueError, match=named):
        methods.get("drift", **settings)


def test_drift_hands_its_settings_to_its_memory():
    memory = methods.get(
        "drift-released",
        ledger_reset_every=50,
        transition_steps=20,
        buffer_min_reward=0.5,
        buffer_start_step=30,
        buffer_start_epoch=1.5,
        prefer_recent=True,
    ).memory()
    assert (memory.curriculum.switch_step, memory.curriculum.reset_after, memory.curriculum.reset_every) == (60, 20, 50)
    buffer = memory.buffer
    assert (buffer.min_reward, buffer.start_step, buffer.start_epoch, buffer.prefer_recent) == (0.5, 30, 1.5, True)
    assert methods.get("drift-paper").memory().buffer.start_epoch == 1.0
    assert methods.get("drift-released").memory().buffer.start_epoch == 0.0


def test_drift_runs_the_teacher_on_right_attempts_where_a_bonus_is_possible():
    """Pass rate 0 is hard, so the medium gate is shut."""
    for settings, runs in [({}, False), ({"bonus_hard": 0.5}, True), ({"bonus_hard": 0.5, "rhythm": False}, False)]:
        assert methods.get("drift-paper", **settings)._scores_correct(0.0) is runs


def test_nobody_learns_from_a_rollout_that_was_not_judged():
    nan = torch.tensor([1.0, float("nan"), 1.0, 0.0])
    unjudged = batch(
        reward=nan, advantage=torch.tensor([0.0, 0.0, 0.5, -0.5]), has_teacher=torch.tensor([False, False, False, True])
    )
    for name in ("grpo", "sdpo", "srpo", "distil", "drift"):
        signals = methods.get(name).signals(unjudged)
        assert float((signals.rl_weight * signals.advantage)[1].abs().sum()) == 0, name
        assert float(signals.sd_weight[1].abs().sum()) == 0, name


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).score_fields])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_method_reads_the_scores_it_declares_and_no_more(name, stage, seed):
    """Its signals are the same, and finite, where every other score is NaN; a field it does not declare raises."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(8, 6, generator=g) > 0.2
    has = torch.rand(8, generator=g) > 0.3
    success = torch.rand(8, generator=g) > 0.5
    logp, teacher_logp = -torch.rand(2, 8, 6, generator=g) * 3
    entropy, teacher_entropy, divergence = torch.rand(3, 8, 6, generator=g) * 3
    true = TokenScores(logp, teacher_logp, entropy, teacher_entropy, divergence)
    method = methods.get(name)
    base = batch(
        mask=mask,
        scores=true,
        reward=success.float(),
        advantage=torch.randn(8, generator=g),
        group=torch.arange(8) // 4,
        has_teacher=has,
        has_context=has,
        success=success,
        pass_rate=torch.rand(8, generator=g),
        stage=stage,
    )
    at = method.score_mask(base)
    partly = TokenScores._make(torch.where(at, value, torch.nan) for value in true)
    whole = method.signals(base)
    found = method.signals(replace(base, scores=Scores(partly, method.score_fields, name)))
    for kind in ("advantage", "rl_weight", "sd_weight"):
        assert torch.isfinite(getattr(found, kind)).all(), kind
        assert torch.equal(getattr(found, kind), getattr(whole, kind)), kind


def test_reading_a_score_that_is_not_declared_raises():
    class Undeclared(type(methods.get("distil"))):
        score_fields = ("divergence",)

    scores = Scores(TokenScores(*torch.zeros(5, 4, 3)), Undeclared.score_fields, "Undeclared")
    with pytest.raises(ValueError, match=r"score_fields: Undeclared.signals reads 'teacher_entropy'.*set score_fields"):
        Undeclared().signals(batch(scores=scores))


def test_a_score_field_that_does_not_exist_is_refused():
    class Wrong(type(methods.get("srpo"))):
        score_fields = ("teachers_entropy",)

    with pytest.raises(ValueError, match=r"Wrong\.score_fields: 'teachers_entropy'"):
        Wrong()


def test_grpo_has_no_settings_of_a_teacher():
    assert set(methods.get("grpo").settings()) == {"success_threshold"}
    with pytest.raises(ValueError, match="grpo has no setting 'divergence'"):
        methods.get("grpo", divergence="js")


def test_a_score_without_any_teacher_is_nan():
    zero = torch.zeros(4, 3)
    alone = all_scores(TokenScores(zero, None, zero, None, None))
    assert alone.teacher_entropy.isnan().all()
