"""What a run did silently otherwise than its method's name says, each as a test that failed before it was mended."""

import random

import pytest
import torch
from tests.methods.batches import make_batch
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer

from errata import methods
from errata.ops.scores import TokenScores, token_scores
from errata.records import Group, Rollout, TeacherContext, Verdict
from errata.training.forward import at_completion, head_of

EVERYONE_RIGHT = [lambda completions, **kw: [Verdict(1.0, "well done")] * len(completions)]


def rollout(index, text, reward, length=3):
    return Rollout(index, "p", "2+2?", text, Verdict(reward), length=length)


def test_a_truncated_success_has_its_length(tmp_path):
    """DRIFT shows the shortest success: one that was cut off must not count as 0 tokens long."""
    run = trainer(
        tmp_path,
        "drift",
        verifiers=EVERYONE_RIGHT,
        max_steps=1,
        max_completion_length=5,
        mask_truncated_completions=True,
    )
    run.train()
    batch = run.generation
    cut = [i for i, n in enumerate(batch.tokens.lengths) if n == 0]
    assert cut
    assert [batch.rollouts[i].length for i in cut] == [5] * len(cut)


def zeros(rows, length):
    return TokenScores(*torch.zeros(5, rows, length))


def test_drift_reinforces_a_wrong_attempt_whose_context_was_dropped():
    """It has a context and no teacher. arXiv 2606.30345: incorrect without a teacher learns from reward, as in SRPO."""
    batch = make_batch(
        torch.ones(2, 3).bool(),
        zeros(2, 3),
        reward=torch.tensor([0.0, 0.0]),
        advantage=torch.tensor([-0.5, -0.5]),
        has_teacher=torch.tensor([True, False]),
        has_context=torch.tensor([True, True]),
        contexts=[TeacherContext("sibling", solution="4")] * 2,
    )
    for name in ("drift-paper", "drift-released"):
        signals = methods.get(name, rhythm=False).signals(batch)
        assert signals.rl_weight.tolist() == [[0.0] * 3, [1.0] * 3], name
        assert signals.sd_weight[0].min() > 0, name
        assert signals.sd_weight[1].tolist() == [0.0] * 3, name


def test_drift_still_weighs_right_attempts_whose_teacher_it_does_not_run():
    """Their teacher is left out to save a forward, so they are not rollouts without one, which weigh 1 in the release.

    At pass rate .9 its gates are h = .00055, m = .07578, z = .92367: .3 h + 1 m + .05 z = .12213.
    """
    batch = make_batch(
        torch.ones(2, 3).bool(),
        zeros(2, 3),
        pass_rate=torch.tensor([0.9, 0.9]),
        reward=torch.ones(2),
        success=torch.ones(2).bool(),
        has_teacher=torch.zeros(2).bool(),
        contexts=[
            TeacherContext("sibling", solution="4", use_teacher=False),
            TeacherContext("sibling", solution="4"),  # its context was dropped, so it has none
        ],
    )
    weight = methods.get("drift-released").signals(batch).rl_weight[:, 0]
    assert weight.tolist() == pytest.approx([0.12213, 1.0], abs=1e-4)


def test_drift_in_a_run_whose_contexts_do_not_fit(tmp_path):
    run = trainer(
        tmp_path, "drift", method_args={"warmup_steps": 0}, max_steps=1, max_teacher_prompt_length=1, teacher="frozen"
    )
    run.train()
    batch = run.generation
    wrong = [i for i, r in enumerate(batch.rollouts) if r.reward == 0 and batch.contexts[i].is_informative]
    assert wrong
    assert all(batch.prompts[i].dropped for i in wrong)
    log = run.state.log_history[0]
    assert log["routing/distilled"] == 0
    assert log["routing/reinforced"] == 1


def test_srpo_runs_no_teacher_on_solved_rollouts(tmp_path):
    method = methods.get("srpo")
    group = Group("p", (rollout(0, "5", 0.0), rollout(1, "4", 1.0), rollout(2, "four", 1.0)))
    shown = [method.context(r, group, memory=method.memory(), epoch=0.0, rng=random.Random(0)) for r in group]
    assert [c.use_teacher for c in shown] == [True, False, False]
    assert [c.is_informative for c in shown] == [True] * 3
    run = trainer(tmp_path, "srpo", max_steps=1)
    run.train()
    batch = run.generation
    solved = [i for i, r in enumerate(batch.rollouts) if r.reward == 1]
    assert solved
    assert any(batch.contexts[i].is_informative for i in solved)
    assert not any(batch.teacher.has_teacher[i] for i in solved)


@pytest.mark.parametrize(
    "option",
    [{"entropy_coef": 0.01}, {"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "cispo", "num_iterations": 2}],
)
def test_grpo_with_an_option_of_trl_writes_rollouts(tmp_path, option):
    kept = []
    run = trainer(tmp_path, "grpo", max_steps=2, keep=kept, gradient_accumulation_steps=2, **option)
    run.train()
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert {row["step"] for row in rows} == {1, 2}
    advantages = torch.cat([run.generation.tokens.advantage]).tolist()
    for row in [row for row in rows if row["step"] == 2]:
        assert len(row["tokens"]) > 0
        assert set(row["signals"]) == {"advantage", "rl_weight", "sd_weight"}
        assert any(row["signals"]["advantage"][0] == pytest.approx(a, abs=1e-4) for a in advantages)


# -- means over a step --------------------------------------------------------------------------------------------------


def by_hand(model, tokens):
    """Mean entropy over all generated tokens of the generation batch, by plain forwards."""
    hidden = model.model(**tokens.model_inputs(), use_cache=False).last_hidden_state
    at = at_completion(hidden, tokens.mask.shape[1])
    entropy = token_scores(at, head_of(model), None, None, tokens.completion_ids, mask=tokens.mask).student_entropy
    return float(entropy[tokens.mask].mean())


@pytest.mark.parametrize(("size", "accumulation"), [(16, 1), (4, 4), (2, 8)])
def test_a_steps_means_are_over_its_tokens(tmp_path, size, accumulation):
    """Rollouts differ in length, so a mean of micro-batch means is another number."""
    run = trainer(
        tmp_path,
        "sdpo",
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_completion_length=24,
    )
    run.train()
    lengths = run.generation.tokens.lengths
    assert min(lengths) < max(lengths)
    with torch.no_grad():
        expected = by_hand(build_model(len(TOKENIZER)), run.generation.tokens)
    log = run.state.log_history[0]
    assert log["entropy"] == pytest.approx(expected, rel=1e-5)


def test_teacher_means_do_not_depend_on_the_cut(tmp_path):
    def logged(size, accumulation):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        run = trainer(tmp_path, "sdpo", max_steps=2, max_completion_length=24, teacher="frozen", **cut)
        run.train()
        names = ("entropy", "teacher/divergence", "teacher/entropy", "teacher/gap")
        return [log[name] for log in run.state.log_history[:2] for name in names]

    whole = logged(16, 1)
    assert logged(4, 4) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert logged(2, 8) == pytest.approx(whole, rel=1e-4, abs=1e-6)


# -- clipped shares -----------------------------------------------------------------------------------------------------


def test_the_share_of_clipped_tokens_is_logged(tmp_path):
    """A limit below every divergence clips all distilled tokens, one above none; the true median about half."""

    def share(clip):
        run = trainer(tmp_path, "sdpo", max_steps=1, teacher="frozen", method_args={"token_clip": clip}, keep=kept)
        run.train()
        return run.state.log_history[0]["clip_ratio/token_clip"]

    kept = []
    assert share(1e-9) == 1.0
    divergences = [
        divergence for _, row in kept if "divergence" in row["signals"] for divergence in row["signals"]["divergence"]
    ]
    middle = sorted(divergences)[len(divergences) // 2]
    assert 0.2 < share(middle) < 0.8
    assert share(1e9) == 0.0


def test_the_share_of_clipped_ratios_is_logged(tmp_path):
    def logs(clip, **more):
        args = {"importance_clip": clip}
        run = trainer(tmp_path, "sdpo", max_steps=2, method_args=args, learning_rate=3e-2, **more)
        run.train()
        return [log.get("clip_ratio/importance_clip") for log in run.state.log_history[:2]]

    assert logs(2.0) == [None, None]  # the policy has not moved since it sampled
    first, second = logs(1.001, num_iterations=2)
    assert first == 0.0
    assert 0.1 < second < 0.9
    assert logs(1e9, num_iterations=2)[1] == 0.0
    assert logs(None, num_iterations=2) == [None, None]
