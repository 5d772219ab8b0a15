"""``errata train --help``, its page in the docs, shell completion, and a command line without a recipe."""

import re
import subprocess
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from trl import GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from errata.cli import _with_recipe, main, parser
from errata.recipe.config import ErrataConfig
from errata.recipe.groups import GROUPS, REST, settings
from errata.recipe.help import page
from errata.recipe.read import read

ROOT = Path(__file__).parents[2]
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def found():
    return {s.name: (title, s) for title, group in settings().items() for s in group}


def test_the_page_is_current():
    for package in ("trl", "transformers"):
        if version(package) != PINNED[package]:
            pytest.skip(f"{package} {version(package)} may have other defaults than the page's {PINNED[package]}")
    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_every_setting_is_in_one_group(found):
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert set(found) == {
        f.name for kind in (ErrataConfig, ModelConfig, GRPOScriptArguments) for f in fields(kind) if f.init
    } | {"datasets", "streaming", "test_split_size"}  # TRL's mixture
    assert sum(len(group) for group in settings().values()) == len(found)


def test_errata_s_own_settings_are_explained_in_a_group(found):
    own = {f.name for f in fields(ErrataConfig)} - {f.name for f in fields(GRPOConfig)}
    assert len(own) > 45
    for name in own:
        title, setting = found[name]
        assert title != REST, name
        assert (setting.origin, bool(setting.meaning)) == ("errata", True)
        assert setting.must_be


@pytest.mark.parametrize(
    ("name", "group", "default", "must_be", "origin"),
    [
        ("learning_rate", "Optimizer", 1e-6, "a number in [0, 1]", "TRL"),
        ("max_grad_norm", "Optimizer", 1.0, "a number of at least 0", "transformers"),
        ("epsilon_high", "Loss", 0.28, "a number of at least 0, or null", "errata"),
        ("dtype", "Policy", "float32", "one of auto, float32, float16, bfloat16, or null", "TRL"),
        ("eval_k", "Evaluation", 8, "a whole number in [1, 100,000]", "errata"),
        ("vespo_k_pos", REST, 2.0, "", "TRL"),
    ],
)
def test_a_setting_is_shown_with_its_default(found, name, group, default, must_be, origin):
    title, setting = found[name]
    assert (title, setting.default, setting.must_be, setting.origin) == (group, default, must_be, origin)


def test_help_lists_every_setting(found, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert set(re.findall(r" --(\w+)", text)) >= set(found)
    assert "Problems on which training first looks whether its teacher is worth listening to" in text
    assert "(a number of at least 0, or null; default 0.28)" in text


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (["train", "my.yaml", "--seed", "1"], "my.yaml"),
        (["train", "--model", "house", "--task", "math"], ""),
        (["train"], ""),
        (["preflight", "--k", "2", "my.yaml"], "my.yaml"),
        (["preflight", "--k", "2", "--model", "house"], ""),
    ],
)
def test_a_recipe_is_optional(words, recipe):
    args, rest = parser().parse_known_args(_with_recipe(words))
    assert args.recipe == recipe
    assert rest in ([], words[1:], words[2:], words[3:])


def test_a_run_without_a_recipe_is_read_from_the_flags(capsys):
    words = ["--model", "house", "--task", "rulebook/new-rule", "--method", "distil", "--method_args.credit", "mean"]
    config = read(None, words).config
    assert (config.model, config.task, config.method) == ("house", "rulebook/new-rule", "distil")
    assert config.method_args == {"credit": "mean"}
    assert config.output_dir == "runs/rulebook-new-rule-distil"
    assert main(["train", "--task", "math"]) == 2
    assert capsys.readouterr().err == "errata: model: missing; name a hub id, a directory or `house`\n"


def test_a_shell_completes_commands_and_settings(tmp_path, capsys):
    pytest.importorskip("shtab", reason="needs shtab: pip install 'errata[completion]'")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "errata.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        asked = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_errata; "
        return subprocess.check_output(["bash", "-c", asked + 'echo "${COMPREPLY[@]}"'], text=True).split()

    assert completed("errata", "comp") == ["compare", "completion"]
    assert completed("errata", "train", "--replay_") == ["--replay_capacity", "--replay_share", "--replay_limit"]
    assert completed("errata", "completion", "z") == ["zsh"]
