"""errata's tasks under the real Inspect AI, and its tasks under ``errata eval``."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai", reason="needs Inspect AI: pip install 'errata[inspect]'")

import inspect_ai
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from errata import tasks
from errata.adapters import Problems
from errata.adapters.inspect import errata_task
from errata.cli import main
from errata.feedback import judge
from errata.house import HOUSE_PATH

TASKS = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import choice, match
from inspect_ai.solver import generate, multiple_choice, prompt_template, system_message


@task
def sums():
    return Task(
        dataset=[Sample(input="1+1=?", target="2"), Sample(input="2+3=?", target="5", id="five")],
        solver=[system_message("Only digits."), prompt_template("Work out: {prompt}"), generate()],
        scorer=match(numeric=True),
    )


@task
def colour():
    sample = Sample(input="Colour of grass?", choices=["red", "green"], target="B")
    return Task(dataset=[sample], solver=multiple_choice(), scorer=choice())


@task
def twice():
    return Task(dataset=[Sample(input="1+1=?", target="2")], solver=[generate(), generate()], scorer=match())
"""


def answers(problems, wrong):
    """A model that gives the reference of the problem it is asked, and a wrong answer to those in ``wrong``."""
    texts = {row["prompt"][-1]["content"]: (key, row["reference"]) for key, row in problems.rows.items()}

    def output(messages, tools, tool_choice, config):
        key, reference = texts[messages[-1].text]
        said = ModelOutput.from_content("mockllm/model", "9=9" if key in wrong else reference)
        said.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else a tokenizer would be fetched
        return said

    return get_model("mockllm/model", custom_outputs=output)


def test_a_task_of_errata_runs_under_inspect(tmp_path):
    problems = Problems("rulebook/new-rule", limit=4)
    wrong = {"rulebook/new-rule/test/1"}
    args = {"feedback": "correction"}
    (log,) = inspect_ai.eval(
        errata_task("rulebook/new-rule", limit=4, args=args),
        model=answers(problems, wrong),
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    assert {s.id: s.scores["verdict"].value for s in log.samples} == {
        f"rulebook/new-rule/test/{i}": 0.0 if i == 1 else 1.0 for i in range(4)
    }
    assert log.results.scores[0].metrics["mean"].value == 0.75
    failed = next(s for s in log.samples if s.id in wrong).scores["verdict"]
    row = problems.rows["rulebook/new-rule/test/1"]
    (own,) = judge(
        tasks.verifier("rulebook/new-rule", **args),
        prompts=[row["prompt"]],
        completions=[[{"role": "assistant", "content": "9=9"}]],
        columns={k: [v] for k, v in row.items() if k != "prompt"},
        timeout_s=None,
    )
    assert own.feedback
    assert (failed.explanation, failed.metadata["kind"]) == (own.feedback, own.kind)


def test_inspect_finds_the_task_by_its_name():
    from inspect_ai._util.registry import registry_info

    assert registry_info(errata_task).name in ("errata/task", "task")


@pytest.mark.slow
def test_the_command_finds_the_task_by_its_name_and_asks_a_real_model(tmp_path):
    """``inspect eval errata/task`` as a user types it, of the package as it is installed."""
    if "errata" not in entry_points(group="inspect_ai").names:
        pytest.skip("errata is not installed, or in an older version")
    words = ["errata/task", "-T", "name=rulebook/new-rule", "-T", "limit=2", "--max-tokens", "40", "--display", "none"]
    model = ["--model", "hf/house", "-M", f"model_path={HOUSE_PATH}", "--log-dir", str(tmp_path)]
    program = Path(sys.executable).with_name("inspect")
    subprocess.run([program, "eval", *words, *model], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True)
    log = read_eval_log(next(tmp_path.glob("*.eval")))
    assert (log.status, len(log.samples)) == ("success", 2)
    scores = [sample.scores["verdict"] for sample in log.samples]
    assert all(score.value == 1.0 or " not " in score.explanation for score in scores)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASKS)
    return tmp_path


def test_a_task_of_inspect_is_read_as_a_model_would_be_asked(here):
    rows = tasks.load("inspect/mine.py:sums", split="test")
    assert rows["problem_id"] == ["1", "five"]
    assert rows["answer"] == ["2", "5"]
    assert rows["prompt"][0] == [
        {"role": "system", "content": "Only digits."},
        {"role": "user", "content": "Work out: 1+1=?"},
    ]


@pytest.mark.parametrize(
    ("name", "texts", "scores"),
    [
        ("inspect/mine.py:sums", ["It is 2.", "It is 4."], [1.0, 0.0]),
        ("inspect/mine.py:colour", ["ANSWER: B", "ANSWER: A", "who knows"], [1.0, 0.0, 0.0]),
    ],
)
def test_its_own_scorers_judge(here, name, texts, scores):
    rows = tasks.load(name, split="test")
    verdicts = judge(
        tasks.verifier(name),
        prompts=[rows[0]["prompt"]] * len(texts),
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        columns={"problem_id": [rows[0]["problem_id"]] * len(texts), "task": [name] * len(texts)},
        timeout_s=60,
    )
    assert [v.score for v in verdicts] == scores


def test_errata_eval_measures_a_policy_on_it(here, capsys):
    words = ["eval", "house", "--task", "inspect/mine.py:sums", "--k", "2", "--max_completion_length", "4"]
    assert main([*words, "--out", "judged.jsonl"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["task"] == "inspect/mine.py:sums"
    judged = [json.loads(line) for line in (here / "judged.jsonl").read_text().splitlines()]
    assert len(judged) == 4
    assert numbers["avg@2"] == sum(row["score"] for row in judged) / 4


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("inspect/mine.py:sums", "train", "has test alone"),
        ("inspect/mine.py:twice", "test", "asks its model more than once"),
        ("inspect/mine.py:nothing", "test", "has no 'nothing'"),
        ("inspect/mine.py:match", "test", "returns no task of Inspect AI"),
    ],
)
def test_what_cannot_be_used_is_refused(here, name, split, said):
    with pytest.raises(ValueError, match=said):
        tasks.load(name, split=split)
