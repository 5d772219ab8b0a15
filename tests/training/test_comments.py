"""Corrections and critiques in training: who is asked, what the teacher is then shown, what it costs; nothing is disturbed."""

import shutil

import pytest
import torch
from tests.training.worlds import TOKENIZER, build_model, history, reward, trainer, weights

from errata.records import Verdict
from errata.training.checkpoint import complete_checkpoints


def silent(completions, **kwargs):
    """A bit and no words: about half of a random policy's attempts pass."""
    return [float(r > 0.5) for r in reward(completions)]


def run(folder, method="distil", **changes):
    kept = []
    changes = {"verifiers": [silent], "method_args": {"sources": ["feedback"]}, "rollouts_saved": 8, **changes}
    t = trainer(folder, method, keep=kept, **changes)
    t.train()
    return t, [row for stem, row in kept if stem == "rollouts"]


def failed_and_solved(rows):
    failed, solved = ([r for r in rows if r["reward"] == score] for score in (0.0, 1.0))
    assert failed
    assert solved
    return failed, solved


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("critic")
    build_model(len(TOKENIZER), seed=7).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


# -- corrections --


def test_a_column_corrects_failed_attempts(tmp_path):
    t, rows = run(tmp_path, correction="reference", max_steps=2)
    failed, solved = failed_and_solved(rows)
    for row in failed:
        assert row["kind"] == row["context"]["why"].split()[0] == "correction"
        assert row["feedback"] in ("abc", "abca", "abcab")
        assert row["leaks_answer"]
        assert row["context"]["leaks_answer"]
        assert row["context"]["prompt"][-1]["content"] == f"{row['prompt'][-1]['content']} {row['feedback']}"
    assert all(row["feedback"] == "" and row["context"]["prompt"] is None for row in solved)
    given = [log["correction/given"] for log in t.state.log_history if "correction/given" in log]
    assert given[-1] == sum(r.reward == 0 for r in t.generation.rollouts) / 8


def test_a_program_corrects_and_may_fail_or_be_silent(tmp_path):
    (tmp_path / "expert.py").write_text(
        "def correct(rollout):\n"
        "    if rollout.problem_id == 'p1':\n        raise ConnectionError('away')\n"
        "    return None if rollout.problem_id == 'p2' else rollout.row['reference'] + ' not ' + rollout.completion[:2]\n"
    )
    _, rows = run(tmp_path, correction=f"{tmp_path / 'expert.py'}:correct", max_steps=4)
    failed, _ = failed_and_solved(rows)
    assert {"p1", "p2"} < {row["problem_id"] for row in failed}
    for row in failed:
        if row["problem_id"] in ("p1", "p2"):
            assert (row["feedback"], row["reward"], row["context"]["kind"]) == ("", 0.0, "none")
            assert ("away" in row["info"].get("correction_error", "")) == (row["problem_id"] == "p1")
        else:
            assert row["feedback"].endswith(f" not {row['completion'][:2]}".strip())
            assert row["feedback"] in row["context"]["prompt"][-1]["content"]


def test_corrections_that_leak_can_be_forbidden(tmp_path):
    _, rows = run(
        tmp_path, correction="reference", max_steps=1, method_args={"sources": ["feedback"], "allow_leaks": False}
    )
    failed, _ = failed_and_solved(rows)
    assert all(r["leaks_answer"] and r["context"]["kind"] == "none" and r["context"]["prompt"] is None for r in failed)


# -- critiques --


def test_the_policy_criticises_its_own_failures(tmp_path):
    t, rows = run(
        tmp_path, critic="policy", critic_max_tokens=6, critic_template="{{ problem }}?{{ attempt }}", max_steps=2
    )
    failed, solved = failed_and_solved(rows)
    told = [row for row in failed if row["feedback"]]
    assert told
    for row in told:
        assert row["kind"] == "critique"
        assert not row["leaks_answer"]
        assert row["context"]["prompt"][-1]["content"] == f"{row['prompt'][-1]['content']} {row['feedback']}"
        assert 1 <= row["info"]["critique_tokens"] <= 6
        attempted = row["completion"].strip() or row["completion"]
        # One token is one character in this world.
        assert row["info"]["critique_prompt_tokens"] == len(f"{row['prompt'][-1]['content']}?{attempted.strip()}")
    assert all("critique_tokens" not in row["info"] for row in solved)

    last = t.generation.rollouts
    infos = [r.verdict.info for r in last]
    written = sum(i.get("critique_tokens", 0) for i in infos)
    log = [log for log in t.state.log_history if "critic/tokens" in log][-1]
    assert log["critic/tokens"] == written > 0
    assert log["critic/prompt_tokens"] == sum(i.get("critique_prompt_tokens", 0) for i in infos)
    assert log["critic/share"] == pytest.approx(written / (written + sum(r.length for r in last)))
    assert t.generation_config.max_new_tokens == t.generation_kwargs["max_new_tokens"] == 10


def test_another_model_criticises_and_its_words_are_its_own(tmp_path, other_model):
    def critiques(critic, name):
        _, rows = run(tmp_path / name, critic=str(critic), critic_max_tokens=6, max_steps=1)
        failed, _ = failed_and_solved(rows)
        assert {row["kind"] for row in failed if row["feedback"]} == {"critique"}
        return [row["feedback"] for row in failed], [row["completion"] for row in rows]

    by_other, attempts = critiques(other_model, "a")
    again, _ = critiques(other_model, "b")
    by_policy, same_attempts = critiques("policy", "c")
    assert by_other == again != by_policy
    assert attempts == same_attempts  # the critic draws from random numbers of its own


def test_what_the_judge_said_is_kept_and_its_leak_is_inherited(tmp_path):
    def leaking(completions, **kwargs):
        return [Verdict(v, "It is abc.", "trace", leaks_answer=True) for v in silent(completions)]

    _, rows = run(tmp_path, verifiers=[leaking], critic="policy", critic_max_tokens=6, max_steps=1)
    told = [row for row in rows if row["kind"] == "critique"]
    assert told
    assert all(row["info"]["judged"] == "It is abc." and row["context"]["leaks_answer"] for row in told)


@pytest.mark.parametrize("method", ["grpo", "opsd"])
@pytest.mark.parametrize("who", ["critic", "correction"])
def test_nobody_is_asked_where_no_teacher_would_be_told(tmp_path, caplog, method, who):
    asked = {"critic": "policy"} if who == "critic" else {"correction": "reference"}
    t, rows = run(tmp_path, method, method_args={}, max_steps=1, **asked)
    assert f"{who}: not used" in caplog.text
    assert {row["kind"] for row in rows} == {""}
    assert not any("critic/tokens" in log or "correction/given" in log for log in t.state.log_history)


@pytest.mark.parametrize("critic", ["policy", "other"])
def test_a_run_with_a_critic_resumes_to_the_identical_result(tmp_path, other_model, critic):
    common = {"critic": critic if critic == "policy" else str(other_model), "critic_max_tokens": 6, "teacher_rate": 0.3}
    whole, rows = run(tmp_path / "whole", max_steps=4, **common)
    run(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2, **common)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    (checkpoint,) = complete_checkpoints(tmp_path / "cut")
    kept = []
    second = trainer(
        tmp_path / "cut",
        "distil",
        verifiers=[silent],
        method_args={"sources": ["feedback"]},
        rollouts_saved=8,
        keep=kept,
        max_steps=4,
        **common,
    )
    second.train(resume_from_checkpoint=str(checkpoint))
    assert (
        history(second, "loss", "grad_norm", "critic/tokens")[-2:]
        == history(whole, "loss", "grad_norm", "critic/tokens")[-2:]
    )
    assert [row for stem, row in kept if stem == "rollouts"] == [row for row in rows if row["step"] > 2]
    for a, b in zip(weights(second.model).values(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b)


# -- settings --


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correction": "fix"}, "correction: the data has no column 'fix'"),
        ({"correction": "nowhere.py:f"}, "correction: no file 'nowhere.py'"),
        ({"correction": "person"}, "correction: a person is asked in the terminal"),
        ({"correction": "reference", "critic": "policy"}, "critic: a critique would replace what correction says"),
        ({"critic": "/no/such/model"}, "critic: no directory '/no/such/model'"),
        ({"critic": "policy", "critic_template": "{{ solution }}"}, "template: no 'solution'"),
        (
            {"critic": "policy", "critic_max_tokens": 0},
            "critic_max_tokens: must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, "distil", **changes)


# -- completions that speak of what they never saw --


def test_the_share_of_completions_that_mention_feedback_is_logged(tmp_path, monkeypatch):
    t = trainer(tmp_path, "distil", max_steps=1)
    batch_decode = t.processing_class.batch_decode
    words = {0: "As the hint says, x.", 3: "The judge said no."}
    monkeypatch.setattr(
        t.processing_class,
        "batch_decode",
        lambda ids, **kw: [words.get(i, text) for i, text in enumerate(batch_decode(ids, **kw))],
    )
    t.train()
    (log,) = [log for log in t.state.log_history if "rollouts/mentions_feedback" in log]
    assert log["rollouts/mentions_feedback"] == 2 / 8
