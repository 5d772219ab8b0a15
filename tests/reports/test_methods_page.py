"""What ``errata methods`` prints is what the methods are."""

import subprocess
import sys

import pytest

from errata import methods
from errata.reports.methods import describe, overview


def line_of(text, word):
    return next(line for line in text.splitlines() if line.split()[:1] == [word])


def test_every_name_has_a_line():
    lines = overview().splitlines()
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert set(methods.names()) <= set(first_words)


def test_lists_keep_their_brackets():
    assert "[sibling, buffer]" in line_of(overview(), "drift-released")


def test_a_preset_shows_its_value_and_the_default_it_replaces():
    text = describe("distil-math")
    assert line_of(text, "credit").split()[1:3] == ["reweight", "sum"]
    assert line_of(text, "support").split()[1:3] == ["teacher_topk", "full"]
    assert "learning_rate: 5e-06, lora_r: 64" in text
    assert "arXiv 2606.05152, mathematics, as released" in text


def test_a_value_that_is_the_default_is_shown_once():
    # The next word is the meaning's first.
    assert line_of(describe("distil"), "credit").split()[1:3] == ["sum", "none:"]


@pytest.mark.parametrize("name", methods.names())
def test_all_settings_of_a_method_are_shown(name):
    words = {line.split()[0] for line in describe(name).splitlines() if line.strip()}
    assert set(methods.get(name).settings()) <= words


def test_an_inherited_setting_is_explained():
    assert "EMA rate per optimizer step." in line_of(describe("distil"), "teacher_rate")


def test_a_method_of_the_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from errata.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Method):\n"
        "    idea = 'guess'\n"
        "    strength: float = 0.25\n"
        "    def signals(self, batch):\n"
        "        raise NotImplementedError\n"
    )
    text = describe(f"{file}:Mine")
    assert line_of(text, "idea").split() == ["idea", "guess"]
    assert line_of(text, "strength").split() == ["strength", "0.25"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'distil'"):
        describe("distl")


def test_importing_it_loads_no_torch():
    code = "import sys, errata.reports.methods; sys.exit('torch' in sys.modules or 'errata.methods' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
