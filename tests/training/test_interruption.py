"""Signals, locks and what a run leaves at its end: nothing is lost, and one process writes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.training.test_damage import contents, environment, policy, recipe, same_finish  # noqa: F401

from errata.cli import main
from errata.reports.lock import Lock, holder
from errata.reports.rundir import RunDirectory
from errata.reports.runs import load, unfinished
from errata.training import checkpoint as checkpoints
from errata.training import interrupt

ROOT = Path(__file__).parents[2]
SHORT = {
    "preflight": 0,
    "max_steps": 4,
    "save_steps": 2,
    "eval_steps": 2,
    "replay_capacity": None,
    "steps_per_generation": None,
}

SEND = """
import os, signal, sys
number, place, step = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
from errata.training import compat, trainer
def send(inside, arrived):
    def method(self, *args):
        if arrived(self):
            os.kill(os.getpid(), number)
        return inside(self, *args)
    return method
at = lambda self: self.state.global_step == step
if place == "sampling":
    compat.GRPOTrainer._generate = send(compat.GRPOTrainer._generate, at)
elif place == "learning":
    trainer.ErrataTrainer.batch_loss = send(trainer.ErrataTrainer.batch_loss, at)
elif place == "evaluating":
    trainer.ErrataTrainer.judge = send(trainer.ErrataTrainer.judge, at)
elif place == "writing":
    trainer.ErrataTrainer.save_state = send(trainer.ErrataTrainer.save_state, at)
from errata.cli import main
sys.exit(main(["train", sys.argv[1], *sys.argv[5:]]))
"""


def sent(recipe, number, place, step, *more):
    command = [sys.executable, "-c", SEND, str(recipe), str(int(number)), place, str(step), *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, policy):  # noqa: F811
    folder = tmp_path_factory.mktemp("whole")
    assert main(["train", str(recipe(folder, policy, **SHORT))]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "place", "step", "saved"),
    [
        (signal.SIGTERM, "sampling", 3, 3),  # the step under way is dropped
        (signal.SIGINT, "sampling", 0, 0),
        (signal.SIGTERM, "learning", 2, 3),  # it ends
        (signal.SIGTERM, "evaluating", 2, 2),  # its row is written by the resumed run
        (signal.SIGINT, "writing", 2, 2),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, policy, whole, number, place, step, saved):  # noqa: F811
    told = recipe(tmp_path, policy, **SHORT)
    run = tmp_path / "run"
    done = sent(told, number, place, step)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.strip().splitlines() == [f"errata: {number.name}: interrupted; the same command resumes the run"]
    assert checkpoints.newest(run).checkpoint == run / f"checkpoint-{saved}"
    assert holder(run) is None
    assert main(["train", str(told)]) == 0
    same_finish(run, whole)


def test_a_signal_before_training_leaves_nothing_in_the_way(tmp_path, policy, whole):  # noqa: F811
    told = recipe(tmp_path, policy, **SHORT, eval_on_start=True)
    done = sent(told, signal.SIGTERM, "evaluating", 0)
    assert done.returncode == 143
    assert not checkpoints.complete_checkpoints(tmp_path / "run")
    assert main(["train", str(told)]) == 0
    assert [row["step"] for row in RunDirectory(tmp_path / "run").read("eval")] == [0, 2, 4]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_killed_while_its_directory_was_begun_begins_anew(tmp_path, policy, whole):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "env.json").write_text('{"status": "running", "started": "2026-11-29"}')
    (tmp_path / "run" / "config.yaml.part").touch()
    assert main(["train", str(recipe(tmp_path, policy, **SHORT))]) == 0
    same_finish(tmp_path / "run", whole)


def test_checkpoints_are_written_on_a_signal_whatever_save_strategy_says(tmp_path, policy):  # noqa: F811
    told = recipe(tmp_path, policy, **SHORT, save_strategy="no")
    assert sent(told, signal.SIGTERM, "learning", 1).returncode == 143
    assert checkpoints.newest(tmp_path / "run").checkpoint == tmp_path / "run" / "checkpoint-2"


def test_a_signal_is_raised_noted_or_raised_later():
    with interrupt.handled(), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.received() == signal.SIGTERM
        with pytest.raises(interrupt.Interrupted) as stop, interrupt.at_once():
            raise AssertionError("the noted signal was to be raised first")
        assert stop.value.status == 143
        with pytest.raises(KeyboardInterrupt):  # pressed again: now, whatever is under way
            os.kill(os.getpid(), signal.SIGINT)
    with interrupt.handled(), pytest.raises(interrupt.Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.received() is None


# -- the trained policy ------------------------------------------------------------------------------------------------


def test_the_policy_is_saved_without_any_checkpoint_and_loads_from_the_run(tmp_path, policy, capsys):  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = recipe(tmp_path, policy, **SHORT, save_strategy="no")
    assert main(["train", str(told)]) == 0
    run = tmp_path / "run"
    assert not checkpoints.complete_checkpoints(run)
    AutoModelForCausalLM.from_pretrained(run)
    AutoTokenizer.from_pretrained(run)
    capsys.readouterr()
    assert main(["eval", str(run), "--k", "1", "--problems", "1"]) == 0
    assert main(["train", str(told), "--max_steps", "6"]) == 2
    assert "without a checkpoint" in capsys.readouterr().err
    assert (run / "config.json").is_file()


def test_more_steps_go_on_from_the_end_of_a_finished_run(tmp_path, policy, whole, capsys):  # noqa: F811
    constant = {**SHORT, "lr_scheduler_type": "constant"}
    (tmp_path / "long").mkdir()
    assert main(["train", str(recipe(tmp_path / "long", policy, **{**constant, "max_steps": 6}))]) == 0
    told = recipe(tmp_path, policy, **constant)
    assert main(["train", str(told)]) == 0
    capsys.readouterr()
    assert main(["train", str(told), "--max_steps", "6"]) == 0
    assert "checkpoint-4" in " ".join(capsys.readouterr().out.split())
    same_finish(tmp_path / "run", tmp_path / "long" / "run")
    assert main(["train", str(told), "--max_steps", "5"]) == 2
    assert "another max_steps" in capsys.readouterr().err


def test_a_run_begun_anew_leaves_nothing_of_the_old_policy(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open({"seed": 1})
    (run.path / "policy.part").mkdir()
    for name in ("config.json", "model.safetensors"):
        (run.path / "policy.part" / name).write_text("{}")
    run.publish_policy(run.path / "policy.part")
    assert (run.path / "model.safetensors").is_file()
    run.open({"seed": 1}, overwrite=True)
    left = {p.name for p in run.path.iterdir()} - {"code.patch"}  # there where the checkout has uncommitted changes
    assert left == {"config.yaml", "env.json"}


# -- one writer --------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path, policy, capsys):  # noqa: F811
    told = recipe(tmp_path, policy, **SHORT)
    with Lock(tmp_path / "run"):
        before = contents(tmp_path)
        assert main(["train", str(told)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"is being written by process {os.getpid()} on" in line
        assert contents(tmp_path) == before
    assert holder(tmp_path / "run") is None


HOLD = "import sys, time; from errata.reports.lock import Lock; from pathlib import Path\nwith Lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_a_dead_holders_lock_is_free(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"), Lock(tmp_path):
        pass
    process.kill()
    process.wait()
    with Lock(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


def test_a_process_of_the_same_number_that_started_later_holds_nothing(tmp_path):
    with Lock(tmp_path):
        found = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(found))
    assert holder(tmp_path) is not None
    (tmp_path / ".lock").write_text(json.dumps({**found, "started": "boot 1"}))
    assert holder(tmp_path) is None


def test_another_machines_lock_is_free_once_it_is_no_longer_renewed(tmp_path):
    other = {"pid": 1, "started": "x", "host": "elsewhere", "since": "then"}
    (tmp_path / ".lock").write_text(json.dumps(other))
    assert holder(tmp_path).host == "elsewhere"
    with pytest.raises(ValueError, match="process 1 on elsewhere"), Lock(tmp_path):
        pass
    os.utime(tmp_path / ".lock", (time.time() - 121,) * 2)
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_damaged_lock_stops_nobody(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with Lock(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


# -- a comparison ------------------------------------------------------------------------------------------------------


def comparison(folder, policy):  # noqa: F811
    told = recipe(folder, policy, **{**SHORT, "max_steps": 30, "save_steps": 1, "save_total_limit": 2})
    settings = yaml.safe_load(told.read_text())
    del settings["output_dir"], settings["teacher"], settings["teacher_rate"], settings["method"]
    told.write_text(yaml.safe_dump(settings))
    words = f"compare {told} --methods grpo,distil --seeds 1 --jobs 2 --output_dir {folder / 'out'}"
    return [sys.executable, "-m", "errata", *words.split()]


def runs(pid):
    """Whether there is such a process, and not only what its parent has yet to collect."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


def wait_until(condition, limit_s=120.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_comparison_that_is_killed_ends_its_runs_and_goes_on(tmp_path, policy, number):  # noqa: F811
    command, out = comparison(tmp_path, policy), tmp_path / "out"
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cells = [out / "grpo-seed42", out / "distil-seed42"]
    wait_until(lambda: all(checkpoints.complete_checkpoints(cell) for cell in cells))
    writers = [holder(cell) for cell in cells]
    process.send_signal(number)
    process.wait(timeout=90)
    wait_until(lambda: not any(map(holder, cells)), 60)
    wait_until(lambda: not any(runs(w.pid) for w in writers if w is not None), 60)
    assert unfinished([out]) == [cell.name for cell in cells]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert unfinished([out]) == []
    assert [row["step"] for row in RunDirectory(cells[0]).read("metrics")] == list(range(1, 31))


def test_an_interrupted_comparison_is_reported(tmp_path, policy, whole, capsys):  # noqa: F811
    import shutil

    out = tmp_path / "out"
    shutil.copytree(whole, out / "distil-seed1")
    plan = {
        "cells": [{"path": f"distil-seed{i}", "label": "distil", "seed": i} for i in (1, 2)],
        "jobs": 1,
        "tuning": {},
    }
    (out / "compare.json").write_text(json.dumps(plan))
    assert [run.path.name for run in load([out])] == ["distil-seed1"]
    assert main(["report", str(out)]) == 0
    assert "not finished and not shown: distil-seed2" in capsys.readouterr().out
    assert "not finished and not shown: distil-seed2" in (out / "report.html").read_text()
    (out / "distil-seed1" / "env.json").unlink()
    assert main(["report", str(out)]) == 2
    assert "none of the comparison" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_killed_twelve_times_finish_the_same(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "kill_test.py"),
        "--kills",
        "12",
        "--folder",
        str(tmp_path / "kills"),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "finished bit for bit" in done.stdout
