"""``errata compare``: what each cell is told, what is refused before anything runs, and a comparison for real."""

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.training.worlds import TOKENIZER, build_model

from errata.cli import main
from errata.commands.compare import Cell, Team, _recipe, grid, settings_of, trials_of
from errata.reports.rundir import RunDirectory
from errata.reports.runs import unfinished

BASE = {
    "model": "house", "task": "rulebook/new-rule", "method": "distil", "method_args": {"discount": 0.9}, "learning_rate": 1e-3,
    "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4,
    "compare": {
        "grpo": {"learning_rate": 3e-3},
        "mean": {"method": "distil", "method_args": {"credit": "mean"}},
        "drift": {"method_args": {"warmup_steps": 1}},
    },
}  # fmt: skip


def test_files_beside_the_recipe_are_those_of_every_run(tmp_path, monkeypatch):
    """A run's own recipe lies elsewhere, in the comparison's folder."""
    monkeypatch.chdir(tmp_path)
    own = {"dataset_name": "rows.jsonl", "verifier": ["judge.py:judge"], "model": "house"}
    project = tmp_path / "project"
    project.mkdir()
    (project / "my.yaml").write_text(yaml.safe_dump({**own, "compare": {"grpo": {"verifier": ["strict.py:judge"]}}}))
    for name in ("rows.jsonl", "judge.py", "strict.py"):
        (project / name).touch()
    base = _recipe(Path("project/my.yaml"))
    assert (base["dataset_name"], base["verifier"]) == (str(project / "rows.jsonl"), [f"{project / 'judge.py'}:judge"])
    assert settings_of(base, "grpo")["verifier"] == [f"{project / 'strict.py'}:judge"]


def test_rows_without_any_to_evaluate_on_are_refused_before_the_first_run(tmp_path, capsys):
    row = {"prompt": "7a+3=?", "answer": "0"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "judge.py").write_text("def judge(completions, **columns):\n    return [0.0] * len(completions)\n")
    own = {"model": "house", "dataset_name": "rows.jsonl", "verifier": ["judge.py:judge"], "max_steps": 1}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(own))
    words = ["compare", str(tmp_path / "my.yaml"), "--methods", "grpo", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 2
    assert "eval_dataset_name: runs are compared on rows to evaluate on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "logs").exists()
    cell = Cell("grpo", 0, "grpo", {**own, "dataset_name": str(tmp_path / "rows.jsonl"), "dataset_test_split": "train"})
    assert Team(tmp_path, [], 1, False, Console(quiet=True))._prepare(cell) is False


def test_a_label_is_the_recipe_with_its_own_settings_over_it():
    assert settings_of(BASE, "grpo") == {
        "model": "house", "task": "rulebook/new-rule", "method": "grpo", "learning_rate": 3e-3,
        "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4,
    }  # fmt: skip


def test_method_args_of_the_recipe_go_to_its_own_method_alone():
    assert settings_of(BASE, "distil")["method_args"] == {"discount": 0.9}
    assert settings_of(BASE, "mean")["method_args"] == {"discount": 0.9, "credit": "mean"}
    assert settings_of(BASE, "drift")["method_args"] == {"warmup_steps": 1}
    assert "method_args" not in settings_of(BASE, "sdpo")


def test_a_variant_has_a_name_of_its_own():
    assert settings_of(BASE, "mean")["method"] == "distil"


@pytest.mark.parametrize("never", [None, False, "no"])
def test_a_recipe_that_never_evaluates_does_in_a_comparison(never):
    found = settings_of(BASE | {"eval_strategy": never}, "grpo")
    assert (found["eval_strategy"], found["eval_steps"], found["eval_on_start"]) == ("steps", 0.2, True)


def test_every_label_tries_equally_many_rates_its_own_first():
    trials = trials_of("grpo", settings_of(BASE, "grpo"), 3, seed=1042)
    assert [t.settings["learning_rate"] for t in trials] == pytest.approx([3e-3, 9.48e-3, 9.48e-4])
    # Never judged on the problems that the comparison is.
    assert {(t.settings["eval_split"], t.settings["seed"], t.settings["eval_problems"]) for t in trials} == {
        ("train", 1042, 128)
    }
    assert len({t.name for t in trials}) == 3


def test_the_grid_grows_to_both_sides():
    assert grid(1) == [1.0]
    assert grid(5) == [1.0, 3.16, 0.316, 10.0, 0.1]


def write(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "grpo,distl"], "did you mean 'distil'"),
        (["--methods", "grpo,grpo"], "named twice"),
        (["--methods", ","], "methods: name at least one"),
        (["--methods", "grpo", "--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["--methods", "grpo", "--jobs", "0"], "--jobs: must be a whole number of at least 1, or null, got 0"),
        (["--methods", "grpo", "--seed", "3"], "seed: set by the comparison"),
        (["--methods", "grpo", "--method_args.credit=mean"], "method_args: set by the comparison"),
        (["--methods", "grpo", "--tune", "2", "--learning_rate", "1"], "--tune chooses it"),
        (["--methods", "grpo", "--max_stps", "3"], "did you mean 'max_steps'"),
        (["--methods", "grpo", "--output_dir"], "needs a value"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", write(tmp_path), *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.log"))


def test_an_override_that_is_no_setting_is_named(tmp_path, capsys):
    recipe = write(tmp_path, compare={"grpo": {"learning_rat": 1}})
    assert main(["compare", recipe, "--methods", "grpo", "--output_dir", str(tmp_path / "out")]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model = build_model(len(TOKENIZER))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_comparison_for_real(tmp_path, policy, capsys):
    recipe = write(
        tmp_path, model=policy, context_template="house", per_device_train_batch_size=8, num_generations=4,
        max_completion_length=12, gradient_checkpointing=False, eval_on_start=True, eval_problems=3,
        eval_k=2, save_steps=2, eval_teacher_problems=2,
    )  # fmt: skip
    out = tmp_path / "out"
    words = [
        "compare",
        recipe,
        "--methods",
        "grpo,mean",
        "--seeds",
        "2",
        "--tune",
        "2",
        "--jobs",
        "2",
        "--output_dir",
        str(out),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "2 seeds, 4 steps, 32 rollouts" in shown
    # The page shows what this very recorder wrote.
    page = re.search(r'id="data">(.*?)</script>', (out / "report.html").read_text(), re.DOTALL)
    attempts = json.loads(page[1])["attempts"]
    assert any({"divergence", "advantage"} <= set(row["signals"]) and row.get("alternatives") for row in attempts)
    plan = json.loads((out / "compare.json").read_text())
    assert [c["path"] for c in plan["cells"]] == ["grpo-seed42", "grpo-seed43", "mean-seed42", "mean-seed43"]
    assert len(plan["tuning"]["grpo"]["trials"]) == len(plan["tuning"]["mean"]["trials"]) == 2
    configs = {c["path"]: RunDirectory(out / c["path"]).config() for c in plan["cells"]}
    assert configs["mean-seed43"]["method_settings"]["credit"] == "mean"
    assert configs["grpo-seed42"]["learning_rate"] == plan["tuning"]["grpo"]["learning_rate"]
    assert set(plan["table"]["rows"]) == {"grpo", "mean"}

    # Interrupted: one cell is gone, one is left in the middle. The same command completes both and repeats nothing.
    kept = (out / "grpo-seed42" / "metrics.jsonl").stat().st_mtime_ns
    cut = RunDirectory(out / "grpo-seed43")
    (cut.path / "env.json").write_text((cut.path / "env.json").read_text().replace('"finished"', '"running"', 1))
    assert main(words) == 0
    assert (out / "grpo-seed42" / "metrics.jsonl").stat().st_mtime_ns == kept
    assert cut.finished

    # Other settings under the same name are refused.
    capsys.readouterr()
    assert main([*words, "--max_completion_length", "10"]) == 2
    assert re.search("run with other settings .* --overwrite true", capsys.readouterr().err)


@pytest.mark.slow
def test_a_cell_that_fails_leaves_the_others(tmp_path, policy, capsys):
    recipe = write(
        tmp_path, model=policy, context_template="house", per_device_train_batch_size=8, num_generations=4,
        max_completion_length=12, gradient_checkpointing=False, eval_problems=3, eval_k=2, eval_teacher_problems=0, max_steps=2,
        compare={"broken": {"method": "grpo", "model": str(tmp_path / "nowhere")}},
    )  # fmt: skip
    out = tmp_path / "out"
    assert (
        main(["compare", recipe, "--methods", "grpo,broken", "--seeds", "1", "--jobs", "1", "--output_dir", str(out)])
        == 1
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "broken-seed42: failed" in shown
    plan = json.loads((out / "compare.json").read_text())
    assert [c["path"] for c in plan["cells"]] == ["grpo-seed42", "broken-seed42"]
    assert {*plan["table"]["rows"]} == {"grpo"}
    assert unfinished([out]) == ["broken-seed42"]


def test_a_line_of_progress_counts_to_the_flags_steps(tmp_path):
    settings = {"model": "house", "task": "rulebook/new-rule", "method": "grpo", "max_steps": 80}
    cell = Cell("grpo", 0, "grpo-seed0", settings)
    team = Team(tmp_path, ["--max_steps", "3"], 1, False, Console(quiet=True))
    assert team._prepare(cell) is False
    assert team._line(cell) == "grpo-seed0: starting"
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / "metrics.jsonl").write_text('{"step": 2, "reward": 0.25}\n')
    assert team._line(cell) == "grpo-seed0: step 2/3  reward 0.250"
