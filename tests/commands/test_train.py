"""``errata train`` and ``errata eval`` as a user runs them, on a policy made here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.training.worlds import TOKENIZER, build_model

from errata.cli import main
from errata.training.checkpoint import complete_checkpoints

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ERRATA_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model = build_model(len(TOKENIZER))
    model.config.max_position_embeddings = 4096  # real prompts are longer than those of the other tests
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def recipe(folder, policy, **changes):
    settings = {
        "model": str(policy),
        "task": "rulebook/new-rule",
        "method": "distil",
        "context_template": "house",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 4,
        "preflight": 0,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
        "eval_problems": 3,
        "eval_k": 2,
        "save_steps": 2,
        "output_dir": str(folder / "run"),
        "eval_teacher_problems": 2,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_directory_says_everything(tmp_path, policy, capsys):
    sampled = {"eval_temperature": 0.7, "eval_top_p": 0.9, "top_k": 30, "seed": 5}
    assert main(["train", str(recipe(tmp_path, policy, **sampled))]) == 0
    shown = capsys.readouterr().out
    assert "avg@2" in shown
    assert "verdict" in shown
    assert "run:" in shown
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["method_settings"]["credit"] == "sum"
    assert json.loads((run / "env.json").read_text())["status"] == "finished"
    metrics = lines(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    health = {
        "reward",
        "groups/solve_all",
        "groups/solve_none",
        "context/none",
        "context/feedback",
        "context/cut",
        "teacher/gap",
        "entropy",
        "teacher/entropy",
        "future_credit",
        "future_share",
        "completions/mean_length",
        "completions/clipped_ratio",
        "rollouts/unjudged",
    }
    assert health <= metrics[0].keys()
    evaluations = lines(run / "eval.jsonl")
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert {
        "task",
        "split",
        "n_problems",
        "k",
        "avg@2",
        "avg@2_low",
        "avg@2_high",
        "pass@2",
        "teacher_accuracy",
    } <= evaluations[0].keys()
    rollout = lines(run / "rollouts.jsonl")[0]
    signals = rollout["signals"]
    assert {len(v) for v in signals.values()} == {len(rollout["tokens"])}
    assert len(rollout["alternatives"]) == len(rollout["tokens"])
    assert rollout["context"]["why"]
    assert [p.name for p in complete_checkpoints(run)] == ["checkpoint-2", "checkpoint-4"]

    assert main(["train", str(recipe(tmp_path, policy, **sampled))]) == 0  # finished: shown again, not run again
    assert "finished" in capsys.readouterr().out
    assert lines(run / "metrics.jsonl") == metrics
    assert (
        main(["train", str(recipe(tmp_path, policy, **sampled, learning_rate=1e-2))]) == 2
    )  # another run of that name is not overwritten
    refusal = capsys.readouterr().err
    assert "holds a finished run with another learning_rate" in refusal
    assert all(mend in refusal for mend in ("--run_name NAME", "--output_dir DIR", "--overwrite true"))

    out = tmp_path / "out.jsonl"
    assert main(["eval", str(run), "--k", "2", "--problems", "3", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.items() >= {k: v for k, v in evaluations[-1].items() if k in found}.items()  # the run's own numbers
    sampling = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 30,
        "seed": 5,
        "max_completion_length": 12,
        "chat_template_kwargs": {},
    }
    assert found["sampling"] == sampling
    assert [row["sampling"] for row in lines(out)] == [sampling] * 6
    assert main(["eval", str(run), "--k", "2", "--problems", "3", "--temperature", "0", "--seed", "1"]) == 0
    changed = json.loads(capsys.readouterr().out)["sampling"]
    assert changed == {**sampling, "temperature": 0.0, "seed": 1}


def test_a_killed_run_resumes_to_the_identical_result(tmp_path, policy):
    def start(folder):
        folder.mkdir()
        command = [sys.executable, "-m", "errata", "train", str(recipe(folder, policy, max_steps=16))]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=600) == 0
    cut = start(tmp_path / "cut")
    deadline = time.monotonic() + 600
    while not complete_checkpoints(tmp_path / "cut" / "run") and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert json.loads((tmp_path / "cut" / "run" / "env.json").read_text())["status"] == "running"
    command = [sys.executable, "-m", "errata", "train", str(tmp_path / "cut" / "recipe.yaml")]
    subprocess.run(command, check=True, capture_output=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})

    clock = {"step_time", "epoch"}
    for stream in ("metrics.jsonl", "eval.jsonl", "rollouts.jsonl"):
        found, expected = (lines(tmp_path / name / "run" / stream) for name in ("cut", "whole"))
        assert [{k: v for k, v in r.items() if k not in clock} for r in found] == [
            {k: v for k, v in r.items() if k not in clock} for r in expected
        ]
    weights = [
        (complete_checkpoints(tmp_path / n / "run")[-1] / "model.safetensors").read_bytes() for n in ("cut", "whole")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "distill"}, "did you mean 'distil'"),
        ({"task": "rulebook/new-rul"}, "did you mean 'rulebook/new-rule'"),
        ({"method_args": {"credits": "sum"}}, "did you mean 'credit'"),
        ({"model": "/no/such/model"}, "model: no directory"),
        ({"num_generations": 3}, "must be divisible"),
        ({"context_template": "sdop"}, "context_template"),
        ({"verifier": ["nowhere.py:judge"]}, "nowhere.py"),
    ],
)
def test_bad_input_is_one_line_before_any_compute(tmp_path, policy, capsys, changes, message):
    assert main(["train", str(recipe(tmp_path, policy, **changes))]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("errata: ")
    assert "\n" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.skipif(not (DATA / "sciknoweval").is_dir(), reason="the real SciKnowEval rows are not here")
def test_real_science_rows(tmp_path, policy, capsys):
    arguments = [
        "--task_path",
        str(DATA / "sciknoweval"),
        "--max_steps",
        "2",
        "--model",
        str(policy),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", str(ROOT / "recipes" / "sciknoweval.yaml"), *arguments]) == 0
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert {r["context"]["kind"] for r in rollouts} == {"reference"}
    assert "Correct solution:" in rollouts[0]["context"]["prompt"][-1]["content"]


def test_a_template_for_each_task_words_the_contexts(tmp_path, policy):
    template = {"rulebook": "house", "math": "{{ prompt }}"}
    changes = {"context_template": template, "max_steps": 1, "eval_on_start": False, "eval_strategy": "no"}
    assert main(["train", str(recipe(tmp_path, policy, **changes))]) == 0
    prompts = [row["context"]["prompt"] for row in lines(tmp_path / "run" / "rollouts.jsonl")]
    assert all("\ntold:" in prompt[-1]["content"] for prompt in prompts if prompt)
    assert any(prompts)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["context_template"] == template
    changes["context_template"] = {"rulebok": "house"}
    assert main(["train", str(recipe(tmp_path, policy, **changes)), "--overwrite", "true"]) == 2


def test_bad_rows_are_left_out_where_not_strict(tmp_path, policy, capsys, caplog):
    for split in ("train", "test"):
        rows = (ROOT / "tests" / "fixtures" / "tooluse" / f"{split}.json").read_text()
        (tmp_path / f"{split}.json").write_text(rows + "{broken\n")
    task = {
        "task": "tooluse",
        "task_path": str(tmp_path),
        "eval_strategy": "no",
        "eval_on_start": False,
        "max_steps": 1,
    }
    assert main(["train", str(recipe(tmp_path, policy, **task))]) == 2
    assert "train.json, line 4: broken JSON" in capsys.readouterr().err
    assert main(["train", str(recipe(tmp_path, policy, **task, strict=False))]) == 0
    assert "train.json: left out 1 of 4 rows; the first: " in caplog.text

    of_fixture = ["eval", str(policy), "--task", "tooluse", "--task_path", str(tmp_path), "--k", "1"]
    limits = ["--max_completion_length", "4"]
    assert main([*of_fixture, *limits]) == 2
    assert "test.json, line 3: broken JSON" in capsys.readouterr().err
    assert main([*of_fixture, *limits, "--strict", "false"]) == 0
    assert json.loads(capsys.readouterr().out)["n_problems"] == 2
    # A run remembers what it was told.
    assert main(["eval", str(tmp_path / "run"), "--k", "1", *limits]) == 0
    assert json.loads(capsys.readouterr().out)["n_problems"] == 2
