"""Verdicts through TRL: floats in, rollouts out; a verifier that fails costs its rollout, never the run."""

import pytest
import torch
from tests.training.worlds import trainer

from errata.records import Verdict
from errata.training.rollouts import Recorder


def test_recorder_gives_trl_floats_and_keeps_verdicts():
    recorder = Recorder(
        lambda completions, **kw: [1.0, {"score": 0.0, "feedback": "no", "kind": "trace"}, None], timeout_s=5
    )
    assert recorder(prompts=["p"] * 3, completions=["a", "b", "c"], answer=["x"] * 3) == [1.0, 0.0, None]
    assert [v.feedback for v in recorder.verdicts] == ["", "no", ""]
    assert (recorder.prompts, recorder.completions) == (["p"] * 3, ["a", "b", "c"])


def test_a_failing_verifier_costs_its_rollout_only(tmp_path):
    def fragile(completions, **kwargs):
        out = []
        for c in completions:
            text = c[-1]["content"]
            if sum(map(ord, text)) % 3 == 0:
                raise RuntimeError("boom")
            out.append(float("nan") if sum(map(ord, text)) % 3 == 1 else Verdict(1.0))
        return out

    kept = []
    run = trainer(tmp_path, "distil", verifiers=[fragile], max_steps=2, keep=kept, rollouts_saved=8)
    run.train()
    logs = [log for log in run.state.log_history if "rollouts/unjudged" in log]
    assert 0 < logs[0]["rollouts/unjudged"] < 1
    rows = [row for stem, row in kept if stem == "rollouts"]
    unjudged = [row for row in rows if row["reward"] is None]
    assert unjudged
    assert all(row["context"]["kind"] == "none" and row["kind"] == "error" for row in unjudged)
    assert all(sum(row["signals"]["sd_weight"]) == 0 for row in unjudged)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_groups_and_evaluations_are_kept_whole(tmp_path):
    kept = []
    run = trainer(tmp_path, "grpo", max_steps=1, keep=kept, rollouts_saved=2, eval_rows=3)
    run.train()
    group = {
        r.problem_id: [o for o in run.generation.rollouts if o.problem_id == r.problem_id]
        for r in run.generation.rollouts
    }
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert len(rows) == len({row["problem_id"] for row in rows}) == 2
    for row in rows:
        shown = [row["completion"], *(other["completion"] for other in row["siblings"])]
        assert sorted(shown) == sorted(r.completion for r in group[row["problem_id"]])
        assert {other["reward"] for other in row["siblings"]} <= {0.0, 1.0}
    kept.clear()
    run.evaluate()
    rows = [row for stem, row in kept if stem == "eval_rollouts"]
    assert [row["problem_id"] for row in rows] == [
        r.problem_id for r in run.evaluator.last_rollouts[:: run.args.eval_k]
    ][:2]
    assert [[a["completion"] for a in row["attempts"]] for row in rows] == [
        [r.completion for r in run.evaluator.last_rollouts[i * run.args.eval_k : (i + 1) * run.args.eval_k]]
        for i in range(2)
    ]


def test_wrong_number_of_verdicts_names_the_verifier(tmp_path):
    def short(completions, **kwargs):
        return [1.0]

    with pytest.raises(ValueError, match="short"):
        trainer(tmp_path, "grpo", verifiers=[short], max_steps=1).train()


def test_several_verifiers_are_summed_by_weight(tmp_path):
    def one(completions, **kwargs):
        return [Verdict(1.0, "first", "a")] * len(completions)

    def two(completions, **kwargs):
        return [0.5] * len(completions)

    run = trainer(tmp_path, "grpo", verifiers=[one, two], reward_weights=[1.0, 2.0], max_steps=1)
    run.train()
    assert {r.reward for r in run.generation.rollouts} == {2.0}
    assert {r.verdict.feedback for r in run.generation.rollouts} == {"first"}


def missing_column(completions, solution_code, **columns):
    return [1.0] * len(completions)


def test_a_verifier_that_fails_on_every_rollout_stops_the_first_step_with_row_and_exception(tmp_path):
    with pytest.raises(
        ValueError, match=r"verifier: missing_column failed on all 8 rollouts; the first: row 'p\d': .*solution_code"
    ):
        trainer(tmp_path, "grpo", verifiers=[missing_column], max_steps=1).train()
    with pytest.raises(ValueError, match="missing_column failed on all"):
        trainer(tmp_path, "grpo", verifiers=[missing_column], max_steps=1, eval_rows=2).evaluate()


def test_a_verifier_that_fails_on_half_of_them_is_a_warning_with_the_count(tmp_path, caplog):
    calls = []

    def fragile(completions, **columns):
        calls.append(None)
        if len(calls) % 2:
            raise RuntimeError("boom")
        return [1.0] * len(completions)

    trainer(tmp_path, "grpo", verifiers=[fragile], max_steps=1).train()
    assert "fragile failed on 4 of 8 rollouts; row 'p" in caplog.text
    assert "boom" in caplog.text


def test_a_verifier_that_has_judged_may_fail_on_a_whole_later_batch(tmp_path, caplog):
    steps = []

    def later(completions, trainer_state, **columns):
        steps.append(trainer_state.global_step)
        if trainer_state.global_step == 1:
            raise RuntimeError("the judge is away")
        return [1.0] * len(completions)

    trainer(tmp_path, "grpo", verifiers=[later], max_steps=3).train()
    assert "later failed on 8 of 8 rollouts" in caplog.text
    assert max(steps) == 2


def test_what_has_judged_before_a_resume_may_fail_after_it(tmp_path, caplog):
    """The run's first batch was judged; that a server is away when the run is resumed does not end it."""
    away = []

    def later(completions, **columns):
        if away:
            raise RuntimeError("the judge is away")
        return [1.0] * len(completions)

    def other(completions, **columns):
        raise RuntimeError("a column is missing")

    saves = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, "grpo", verifiers=[later], **saves).train()
    away.append(True)
    first = str(tmp_path / "checkpoint-1")
    trainer(tmp_path, "grpo", verifiers=[later], **saves).train(resume_from_checkpoint=first)
    assert "later failed on 8 of 8 rollouts" in caplog.text
    with pytest.raises(ValueError, match="verifier: other failed on all 8 rollouts"):
        trainer(tmp_path, "grpo", verifiers=[other], **saves).train(resume_from_checkpoint=first)
