"""``errata tasks RECIPE --check`` and ``--show-context`` with an environment that judges by itself."""

import json

import pytest

from errata.cli import main

WORLD = '''
class Desk:
    def reset(self, wanted, **row):
        {reset}

    def open(self, drawer: str) -> str:
        """
        Opens a drawer.

        Args:
            drawer: a letter.
        """
        return "open"

    def get_reward(self):
        return {{"score": 0.0, "feedback": f"{{self.wanted}} is shut", "kind": "trace"}}
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": [{"role": "user", "content": f"open {d}"}], "wanted": d} for d in "abc"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "desk.yaml").write_text(
        "model: drawers\ndataset_name: rows.jsonl\nenvironment: desk.py:Desk\nmethod: distil\n"
        "method_args: {sources: [hindsight]}\nmax_completion_length: 40\nuse_cpu: true\n"
        'context_template: "{{ prompt }}{% if feedback %} told {{ feedback }}{% endif %}"\n'
    )
    return lambda reset: (tmp_path / "desk.py").write_text(WORLD.format(reset=reset))


def test_an_environment_is_reset_and_asked_for_its_reward(recipe, capsys):
    recipe("self.wanted = wanted")
    assert main(["tasks", "desk.yaml", "--check"]) == 0
    said = capsys.readouterr().out
    assert "wrong answers: 0 of 3 reach the threshold; 3 get feedback" in said
    assert "open a told a is shut" in said
    assert main(["tasks", "desk.yaml", "--show-context"]) == 0
    assert "something became known after a turn (hindsight)" in capsys.readouterr().out


def test_an_environment_that_cannot_be_reset_is_named(recipe, capsys):
    recipe("raise KeyError('drawer')")
    assert main(["tasks", "desk.yaml", "--check"]) == 1
    assert "environment: reset: KeyError: 'drawer'" in " ".join(capsys.readouterr().out.split())
