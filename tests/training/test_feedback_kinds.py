"""Every kind of feedback from a recipe to what the teacher is shown, with `errata train` on the house policy; rollouts of
several turns are in ``test_tools.py``."""

import json
import re

import pytest
import yaml

from errata.cli import main
from errata.feedback.rulebook import rule_of
from errata.feedback.sandbox import isolation
from errata.tasks.rulebook import NEW_RULE

MINE = '''
from errata.feedback.code import CodeVerifier

run = CodeVerifier(workers=2, unsafe_local=True, timeout_s=20)


def program(completions, **columns):
    """Runs each attempt as a Python program: what the house policy writes is none."""
    source = ["```python\\nx = 1\\n" + c[-1]["content"] + "\\n```" for c in completions]
    tests = ['[{"input": "", "output": "1"}]'] * len(source)
    return run(completions=source, tests=tests)


def expert(rollout):
    return f"{rollout.row['expression']} is {rollout.reference}" if rollout.index % 2 else None
'''


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(folder, **changes):
    """The failed and the solved rollouts of one step, and its metrics."""
    (folder / "mine.py").write_text(MINE)
    recipe = {
        "model": "house",
        "task": "rulebook/new-rule",
        "task_args": {"feedback": "bit"},
        "method": "distil",
        "method_args": {"sources": ["feedback"]},
        "teacher": "frozen",
        "context_template": "house",
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 40,
        "max_steps": 1,
        "gradient_checkpointing": False,
        "rollouts_saved": 32,
        "save_strategy": "no",
        "output_dir": str(folder / "run"),
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    rows, (metrics,) = lines(folder / "run" / "rollouts.jsonl"), lines(folder / "run" / "metrics.jsonl")
    failed = [row for row in rows if row["reward"] == 0]
    assert len(failed) > 8
    assert all(row["context"]["prompt"] is None for row in rows if row["reward"] == 1)
    return failed, metrics


def shown(row):
    """What the teacher was told beyond the problem, by the house wording."""
    problem, tried, told = re.fullmatch(
        r"(.*)\ntried:(.*)\ntold:(.*)", row["context"]["prompt"][-1]["content"], re.DOTALL
    ).groups()
    assert (problem, tried) == (row["prompt"][-1]["content"], row["completion"])
    return told


def test_an_execution_trace(tmp_path):
    failed, metrics = train(tmp_path, task_args={"feedback": "trace", "trace": "first"})
    rule, leaks = rule_of(NEW_RULE), []
    for row in failed:
        assert shown(row) == row["feedback"]
        assert row["context"]["leaks_answer"] == row["leaks_answer"]
        step = re.fullmatch(r"(\d)([a-z])([-+*])(\d)=(\d) not (\d)", row["feedback"])
        if step is None:  # a miscopied problem, or no attempt at all
            assert row["kind"] in ("trace", "format")
            continue
        x, letter, operator, n, right, wrong = step.groups()
        assert rule(int(x), operator, int(n)) == int(right) != int(wrong)
        # The result that the last step should have had is the answer.
        assert row["leaks_answer"] == (letter == row["prompt"][-1]["content"].removesuffix("=?")[-3])
        leaks.append(row["leaks_answer"])
    assert set(leaks) == {True, False}
    assert metrics["context/feedback"] == len(failed) / 32


@pytest.mark.skipif(not isolation(), reason="programs cannot be isolated here")
def test_a_program_in_the_sandbox(tmp_path):
    failed, _ = train(tmp_path, verifier=[f"{tmp_path / 'mine.py'}:program"])
    for row in failed:
        assert row["kind"] == "tests"
        assert row["info"]["failed"] == "raised an error"
        assert 'File "program.py", line 2' in row["feedback"]
        assert "Error: " in row["feedback"]
        assert shown(row) == row["feedback"]


def test_a_correction_from_a_column(tmp_path):
    failed, metrics = train(tmp_path, correction="reference")
    for row in failed:
        assert (row["kind"], row["leaks_answer"], row["context"]["leaks_answer"]) == ("correction", True, True)
        expression = row["prompt"][-1]["content"].removesuffix("=?")
        assert shown(row) == row["feedback"]
        assert re.sub(r"=\d", "", row["feedback"]) == expression
    assert metrics["correction/given"] == len(failed) / 32


def test_a_correction_from_a_program_beside_what_the_verifier_said(tmp_path):
    failed, metrics = train(
        tmp_path, correction=f"{tmp_path / 'mine.py'}:expert", task_args={"feedback": "trace", "trace": "first"}
    )
    corrected = [row for row in failed if row["kind"].endswith("+correction")]
    assert 0 < len(corrected) < len(failed)
    assert metrics["correction/given"] == len(corrected) / 32
    for row in corrected:
        expression = row["prompt"][-1]["content"].removesuffix("=?")
        trace, correction = shown(row).split("\n\n")
        assert trace
        assert correction.startswith(f"{expression} is ")


@pytest.mark.parametrize("critic", ["policy", "house"])
def test_a_critique(tmp_path, critic):
    template = "{{ problem }}\ntried:{{ attempt }}\ntold:?"
    failed, metrics = train(tmp_path, critic=critic, critic_template=template, critic_max_tokens=12)
    told = [row for row in failed if row["feedback"]]
    assert told
    for row in told:
        assert (row["kind"], row["leaks_answer"]) == ("critique", False)
        assert shown(row) == row["feedback"]
        assert 1 <= row["info"]["critique_tokens"] <= 12
        assert row["info"]["critique_prompt_tokens"] > len(row["completion"])
    written = sum(row["info"]["critique_tokens"] for row in failed)
    assert metrics["critic/tokens"] == written
    assert metrics["critic/prompt_tokens"] == sum(row["info"]["critique_prompt_tokens"] for row in failed)
    assert 0 < metrics["critic/share"] < 1
