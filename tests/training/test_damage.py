"""Damaged state is found before anything is overwritten, and named; the run goes back to what is whole."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.training.worlds import TOKENIZER, build_model

from errata.cli import main
from errata.training import checkpoint as checkpoints

ROOT = Path(__file__).parents[2]
STEPS = 5
TIMES = ("time", "runtime", "per_second")
FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"),
    *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"),
    *("errata_state/state.json", "errata_state/position_0.pt", "errata_state/replay_0.pt", "errata_state/teacher.safetensors"),
    "errata_state/generation_head.pt",
)  # fmt: skip


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbled(path):
    """As long as before, another byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def missing(path):
    path.unlink()


KINDS = {f.__name__: f for f in (truncated, empty, garbled, missing)}


def recipe(folder, policy, **changes):
    settings = {
        "model": str(policy), "task": "rulebook/new-rule", "method": "distil", "context_template": "house",
        "teacher": "ema", "teacher_rate": 0.3, "replay_capacity": 6, "num_generations": 4, "max_completion_length": 6,
        # A generation batch serves two steps: after an odd number of them the run stands inside one.
        "per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": STEPS, "learning_rate": 1e-3,
        "gradient_checkpointing": False, "eval_strategy": "steps", "eval_steps": 2, "eval_problems": 2, "eval_k": 2,
        "preflight": 0, "eval_teacher_problems": 0, "save_steps": 1, "save_total_limit": 3, "output_dir": str(folder / "run"),
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model = build_model(len(TOKENIZER))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, policy):
    folder = tmp_path_factory.mktemp("finished")
    assert main(["train", str(recipe(folder, policy))]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, policy):
    """A run that has gone three steps of five, with the checkpoints of steps 1 to 3."""
    folder = tmp_path_factory.mktemp("stopped")
    command = [sys.executable, "-c", STOP_AFTER_THREE, str(recipe(folder, policy))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 143, done.stderr
    assert [p.name for p in checkpoints.complete_checkpoints(folder / "run")] == [f"checkpoint-{i}" for i in (1, 2, 3)]
    return folder / "run"


STOP_AFTER_THREE = """
import os, signal, sys
from errata.training import trainer
inside = trainer.ErrataTrainer.batch_loss
def batch_loss(self, *args):
    if self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return inside(self, *args)
trainer.ErrataTrainer.batch_loss = batch_loss
from errata.cli import main
sys.exit(main(["train", sys.argv[1]]))
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


@pytest.fixture
def run(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def rows(run, stream):
    return [
        {k: v for k, v in json.loads(line).items() if not k.endswith(TIMES)}
        for line in (run / f"{stream}.jsonl").read_text().splitlines()
    ]


def same_finish(run, finished):
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    for stream in ("metrics", "eval", "rollouts"):
        assert rows(run, stream) == rows(finished, stream)


def test_every_file_of_a_checkpoint_is_tried(stopped):
    found = {str(p.relative_to(stopped / "checkpoint-3")) for p in (stopped / "checkpoint-3").rglob("*") if p.is_file()}
    assert found - {"training_args.bin", "README.md"} == {*FILES}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found_and_named_and_the_checkpoint_before_it_used(run, name, kind):
    KINDS[kind](run / "checkpoint-3" / name)
    before = contents(run)
    found = checkpoints.newest(run)
    assert found.checkpoint == run / "checkpoint-2"
    (note,) = found.notes
    assert note.startswith("checkpoint-3: ")
    assert name in note
    assert contents(run) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "eval.jsonl"])
def test_rows_cut_back_are_found(run, name, kind):
    """Whatever is lost after a checkpoint's rows does no harm; what is lost of them does."""
    KINDS[kind](run / name)
    wrong = checkpoints.damage(run / "checkpoint-3")
    assert wrong is not None
    assert name in wrong


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.safetensors", "garbled"), ("errata_state/position_0.pt", "missing"), ("optimizer.pt", "truncated")],
)
def test_the_run_says_so_goes_back_and_finishes_the_same(run, finished, policy, capsys, name, kind):
    KINDS[kind](run / "checkpoint-3" / name)
    assert main(["train", str(recipe(run.parent, policy))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"checkpoint-3: {name}" in shown
    assert "checkpoint-2" in shown.split("resuming from")[1]
    same_finish(run, finished)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_the_run_finishes_the_same_whatever_was_damaged(run, finished, policy, name, kind):
    KINDS[kind](run / "checkpoint-3" / name)
    assert main(["train", str(recipe(run.parent, policy))]) == 0
    same_finish(run, finished)


def test_where_none_is_whole_one_line_says_what_can_be_done(run, policy, capsys):
    for step in (1, 2, 3):
        truncated(run / f"checkpoint-{step}" / "optimizer.pt")
    before = contents(run)
    assert main(["train", str(recipe(run.parent, policy))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(f"checkpoint-{step}: optimizer.pt has" in line for step in (1, 2, 3))
    assert "--overwrite true" in line
    assert contents(run) == before


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing"])
@pytest.mark.parametrize("name", ["config.yaml", "env.json"])
def test_settings_come_back_from_the_checkpoint(run, finished, policy, capsys, name, kind):
    KINDS[kind](run / name)
    if kind == "truncated":
        (run / name).write_text("{[")
    assert main(["train", str(recipe(run.parent, policy))]) == 0
    assert f"{name} was damaged or missing; restored from checkpoint-3" in " ".join(capsys.readouterr().out.split())
    same_finish(run, finished)


def test_settings_that_nothing_restores_are_one_line(run, policy, capsys):
    for step in (1, 2, 3):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / "config.yaml").write_text("- a\n- list\n")
    before = contents(run)
    assert main(["train", str(recipe(run.parent, policy))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "config.yaml is damaged" in line
    assert contents(run) == before
    assert main(["train", str(recipe(run.parent, policy)), "--overwrite", "true", "--max_steps", "1"]) == 0


@pytest.mark.parametrize("name", ["config.yaml", "env.json"])
@pytest.mark.parametrize("content", ["", "- 1\n", "{", "\x00\x01"])
def test_a_report_of_damaged_settings_is_one_line(run, capsys, name, content):
    (run / name).write_text(content)
    assert main(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line


def test_an_env_without_its_dates_is_no_obstacle(run, finished, policy):
    (run / "env.json").write_text('{"status": "running"}')
    assert main(["train", str(recipe(run.parent, policy))]) == 0
    same_finish(run, finished)


def test_a_checkpoint_without_a_step_in_its_name_is_one_line(run, policy, capsys):
    (run / "checkpoint-3").rename(run / "best")
    assert main(["train", str(recipe(run.parent, policy)), "--resume_from_checkpoint", str(run / "best")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "checkpoint-STEP" in line


def test_a_file_that_grows_too_large_is_one_line_and_harms_nothing(run, finished, policy):
    """As on a full disk: the weights of the next checkpoint cannot be written."""
    limit = (run / "checkpoint-3" / "model.safetensors").stat().st_size // 2

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    kept = contents(run / "checkpoint-3")
    command = [sys.executable, "-m", "errata", "train", str(recipe(run.parent, policy))]
    done = subprocess.run(
        command, env=environment(), preexec_fn=small, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "checkpoint-4" in line
    assert "checkpoint-3 is kept" in line
    assert contents(run / "checkpoint-3") == kept
    assert not (run / "checkpoint-4").exists()
    assert main(["train", str(recipe(run.parent, policy))]) == 0
    same_finish(run, finished)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path, policy, capsys):
    assert main(["train", str(recipe(tmp_path, policy)), "--output_dir", "/proc/self/fd/run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "/proc/self/fd" in line
