"""The run directory: what it writes, what a kill leaves, what it refuses to overwrite."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.records import Verdict
from errata.reports.rundir import RunDirectory, plain

CONFIG = {"method": "distil", "learning_rate": 1e-05, "task_args": {"feedback": "trace"}, "seed": 0}


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "demo")
    run.open(CONFIG)
    return run


def names(run):
    """What is in the directory; ``code.patch`` is there or not, as the code that runs the tests was committed or not."""
    return sorted(path.name for path in run.path.iterdir() if path.name != "code.patch")


# -- settings and environment --------------------------------------------------------------------------------------


def test_what_was_not_committed_is_kept_with_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        Path("code.py").touch() if command == ["add", "."] else None
        subprocess.run([*git, *command], check=True)
    clean = RunDirectory(tmp_path / "clean")
    clean.open({})
    assert clean.patch() == ""
    Path("code.py").write_text("changed = 1\n")
    changed = RunDirectory(tmp_path / "changed")
    changed.open({})
    assert changed.env()["git"]["changed"] is True
    assert "+changed = 1" in changed.patch().splitlines()


def test_making_the_object_touches_nothing(tmp_path):
    run = RunDirectory(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert run.read("metrics") == []
    assert not run.finished
    with pytest.raises(ValueError, match=r"^run: .* has no config.yaml; is it a run directory"):
        run.config()
    with pytest.raises(ValueError, match=r"^run: .* has no env.json"):
        run.env()


def test_a_new_run(run):
    assert names(run) == ["config.yaml", "env.json"]
    assert run.config() == CONFIG
    assert list(yaml.safe_load((run.path / "config.yaml").read_text())) == list(CONFIG)  # in the order given
    env = run.env()
    assert env["status"] == "running"
    assert env["python"] == ".".join(map(str, sys.version_info[:3]))
    assert env["versions"]["trl"].startswith("1.")
    assert env["argv"] == sys.argv
    assert env["device"]
    run.finish()
    assert run.finished
    assert run.env()["started"] <= run.env()["finished"]


def test_env_names_the_commit_of_the_working_directory(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/a")
    run.open({})
    assert run.env()["git"] is None
    Path("file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    run.open({})
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run.env()["git"] == {"commit": commit, "changed": False}
    Path("file").write_text("two")
    run.open({})
    assert run.env()["git"] == {"commit": commit, "changed": True}


def test_importing_and_opening_load_no_torch(tmp_path):
    code = (
        "import sys; from errata.reports import rundir, table; rundir.RunDirectory(sys.argv[1]).open({'a': 1}); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "torch" in json.loads((tmp_path / "env.json").read_text())["versions"]


# -- rows ----------------------------------------------------------------------------------------------------------


def test_rows_come_back(run):
    run.write("metrics", {"step": 1, "reward": 0.5, "name": "ä \u2028 😀"})
    run.write("metrics", {"step": 2, "reward": 0.25})
    run.write("eval", {"step": 0, "avg@8": 0.1})
    assert run.read("metrics") == [
        {"step": 1, "reward": 0.5, "name": "ä \u2028 😀"},
        {"step": 2, "reward": 0.25},
    ]
    assert run.read("eval") == [{"step": 0, "avg@8": 0.1}]
    assert run.read("rollouts") == []
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 2
    for call in (run.read, lambda stream: run.write(stream, {})):
        with pytest.raises(ValueError, match=r"^stream: no 'metric'; a run has metrics, rollouts, eval"):
            call("metric")


def test_what_json_lacks(run):
    class Kind(StrEnum):
        TRACE = "trace"

    row = {
        "nan": math.nan, "inf": [math.inf, -math.inf], "numpy": np.float32(0.5), "array": np.array([[1, 2]]),
        "nan array": np.array([1.0, math.nan]), "kind": Kind.TRACE, "path": Path("a/b"), "tuple": (1, 2),
        "set": {"b", "a"}, 7: None, "verdict": Verdict(1.0, info={"x": math.nan}), "broken": "\udc80", "bool": True,
    }  # fmt: skip
    run.write("rollouts", row)
    assert run.read("rollouts") == [
        {
            "nan": None, "inf": [None, None], "numpy": 0.5, "array": [[1, 2]],
            "nan array": [1.0, None], "kind": "trace", "path": "a/b", "tuple": [1, 2],
            "set": ["a", "b"], "7": None, "broken": "\udc80", "bool": True,
            "verdict": {
                "score": 1.0, "feedback": "", "kind": "", "leaks_answer": False, "info": {"x": None}, "turn_feedback": [],
            },
        }
    ]  # fmt: skip
    assert "NaN" not in (run.path / "rollouts.jsonl").read_text()


def test_tensors_become_lists_without_torch_being_imported_here(run):
    import torch

    run.write("rollouts", {"signal": torch.tensor([1.0, math.inf], requires_grad=True), "x": torch.tensor(2)})
    assert run.read("rollouts") == [{"signal": [1.0, None], "x": 2}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(json_values)
def test_plain_values_are_json_and_stay_themselves(value):
    once = plain(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert plain(once) == once


# -- kills and resumption ------------------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    code = (
        "import sys; from errata.reports.rundir import RunDirectory\n"
        "run = RunDirectory(sys.argv[1]); run.open({'a': 1})\n"
        "for step in range(10**9):\n"
        "    run.write('metrics', {'step': step, 'text': 'x' * 5000}); print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    seen = [process.stdout.readline() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    acknowledged = int(seen[-1] if seen[-1].endswith("\n") else seen[-2])
    steps = [row["step"] for row in RunDirectory(tmp_path).read("metrics")]
    assert steps == list(range(len(steps)))
    assert len(steps) > acknowledged


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', '{"step": 3}', '{"step": 3, "text": "ä', "\x00\x00"])
def test_a_torn_last_line_is_skipped_and_then_removed(run, torn):
    for step in (1, 2):
        run.write("metrics", {"step": step})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(torn.encode()[:-1] if "ä" in torn else torn.encode())
    assert [row["step"] for row in run.read("metrics")] == [1, 2]
    run.open(CONFIG)
    run.write("metrics", {"step": 3, "again": True})
    assert run.read("metrics") == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_damage_elsewhere_is_named(run):
    run.write("eval", {"step": 1})
    with (run.path / "eval.jsonl").open("a") as file:
        file.write("[1]\n")
    run.write("eval", {"step": 2})
    with pytest.raises(ValueError, match=r"^run: line 2 of .*eval.jsonl is no JSON object; remove that line"):
        run.read("eval")


def test_truncate_after_the_checkpoint(run):
    for step in (1, 2, 3):
        run.write("metrics", {"step": step})
        run.write("rollouts", {"step": step, "k": 0})
        run.write("rollouts", {"step": step, "k": 1})
    run.write("eval", {"step": 0})
    run.write("eval", {"step": 3})
    run.write("eval", {"note": "belongs to step 3"})
    run.truncate_after(2)
    assert [row["step"] for row in run.read("metrics")] == [1, 2]
    assert [row["step"] for row in run.read("rollouts")] == [1, 1, 2, 2]
    assert run.read("eval") == [{"step": 0}]
    run.truncate_after(-1)
    assert [run.read(stream) for stream in ("metrics", "rollouts", "eval")] == [[], [], []]


def test_truncating_copies_lines_byte_for_byte(run):
    (run.path / "metrics.jsonl").write_bytes(b'{"step":1,  "x": 1.50}\n{"step": 2}\n{"st')
    run.truncate_after(1)
    assert (run.path / "metrics.jsonl").read_bytes() == b'{"step":1,  "x": 1.50}\n'


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_anywhere_and_resumed_says_the_same_as_an_uninterrupted_one(tmp_path, seed):
    dice = random.Random(seed)

    def go(run, start, stop):
        for step in range(start, stop):
            run.write("metrics", {"step": step})
            if step % 2 == 0:
                run.write("eval", {"step": step})

    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    whole.open(CONFIG)
    go(whole, 0, 20)
    checkpoint = -1
    for _ in range(3):
        parts.open(CONFIG)
        parts.truncate_after(checkpoint)
        killed = dice.randint(checkpoint + 2, checkpoint + 7)
        go(parts, checkpoint + 1, killed)
        with (parts.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "re')
        checkpoint = dice.randint(checkpoint + 1, killed - 1)
        assert parts.read("metrics")[-1]["step"] == killed - 1
    parts.open(CONFIG)
    parts.truncate_after(checkpoint)
    go(parts, checkpoint + 1, 20)
    for stream in ("metrics.jsonl", "eval.jsonl"):
        assert (parts.path / stream).read_bytes() == (whole.path / stream).read_bytes()
    assert len(parts.env()["resumed"]) == 3


# -- not overwriting -----------------------------------------------------------------------------------------------

OTHER = {**CONFIG, "learning_rate": 1e-4, "epochs": 3}


def test_the_same_settings_continue(run):
    run.write("metrics", {"step": 1})
    run.finish()
    run.open(dict(reversed(CONFIG.items())))
    assert run.read("metrics") == [{"step": 1}]
    assert run.env()["status"] == "running"
    assert len(run.env()["resumed"]) == 1


def test_a_finished_run_is_not_overwritten_by_another(run):
    run.write("metrics", {"step": 1})
    run.finish()
    with pytest.raises(
        ValueError, match=r"^output_dir: .*demo holds a finished run with another epochs, learning_rate; name another"
    ):
        run.open(OTHER)
    assert run.config() == CONFIG
    assert run.finished
    assert run.read("metrics") == [{"step": 1}]


def test_an_interrupted_run_with_checkpoints_is_not_overwritten_by_another(run):
    (run.path / "checkpoint-10").mkdir()
    with pytest.raises(ValueError, match="holds an interrupted run with another epochs, learning_rate"):
        run.open(OTHER)
    run.open(OTHER, resume=True)
    assert run.config() == OTHER
    assert run.checkpoints() == [(10, run.path / "checkpoint-10")]


def test_a_run_that_got_nowhere_makes_room(run):
    run.write("metrics", {"step": 1})
    run.open(OTHER)
    assert run.config() == OTHER
    assert run.read("metrics") == []
    assert "resumed" not in run.env()


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(run):
    for step in (10, 9):
        (run.path / f"checkpoint-{step}").mkdir()
        (run.path / f"checkpoint-{step}" / "weights").write_text("w")
    for name in ("notes.txt", "checkpoint-best", "report.html"):
        (run.path / name).write_text("mine")
    assert [step for step, _ in run.checkpoints()] == [9, 10]
    run.write("eval", {"step": 1})
    run.finish()
    run.open(OTHER, overwrite=True)
    assert names(run) == ["checkpoint-best", "config.yaml", "env.json", "notes.txt"]
    assert not run.finished


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"^output_dir: .* has a config.yaml that no run wrote"):
            RunDirectory(tmp_path).open(CONFIG, overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"
    with pytest.raises(ValueError, match=r"^output_dir: .*config.yaml is a file"):
        RunDirectory(tmp_path / "config.yaml").open(CONFIG)
