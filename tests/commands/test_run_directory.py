"""A run of another method or setting gets a directory of its own, and the same command always the same one."""

from pathlib import Path

import pytest
from rich.console import Console

from errata.commands.train import _directory_of, _resolved
from errata.recipe.read import read
from errata.reports.rundir import RunDirectory

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def directory(*overrides, done=False, console=None):
    recipe = read(DEMO, overrides)
    found = _directory_of(console or Console(quiet=True), recipe)
    assert recipe.config.output_dir == str(found)
    if done:
        run = RunDirectory(found)
        run.open(_resolved(recipe))
        run.finish()
    return str(found)


def test_another_setting_gets_a_directory_of_its_own(capsys):
    assert directory(done=True) == "runs/demo"
    assert directory() == "runs/demo"
    assert directory("--max_steps", "160") == "runs/demo"  # the same run, longer
    assert directory("--learning_rate", "0.0003", console=Console(width=200), done=True) == "runs/demo-2"
    said = "runs/demo holds a run with another learning_rate; this one is runs/demo-2\n"
    assert capsys.readouterr().out == said
    assert directory("--learning_rate", "0.0003") == "runs/demo-2"
    assert directory("--teacher", "ema", done=True) == "runs/demo-3"
    assert directory("--teacher", "ema") == "runs/demo-3"
    assert directory() == "runs/demo"


def test_another_method_gets_a_name_of_its_own():
    directory(done=True)
    assert directory("--method", "drift", done=True) == "runs/demo-drift"
    assert directory("--method", "drift", "--run_name", "demo-other") == "runs/demo-other"
    assert directory("--method", "drift", "--learning_rate", "1e-5") == "runs/demo-drift-2"


def test_a_directory_that_is_named_is_kept():
    directory("--output_dir", "mine", done=True)
    assert directory("--output_dir", "mine", "--learning_rate", "1e-5") == "mine"
    directory(done=True)
    assert directory("--learning_rate", "1e-5", "--overwrite", "true") == "runs/demo"


def test_a_run_without_results_is_not_kept_apart():
    RunDirectory("runs/demo").open({"learning_rate": 1.0})
    assert directory() == "runs/demo"
