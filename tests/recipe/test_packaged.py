"""Recipes that the package carries are found by their name, in any directory."""

from pathlib import Path

import pytest

from errata.recipe.text import recipe_file

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["demo.yaml", "recipes/demo.yaml"])
def test_a_carried_recipe_is_found_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert recipe_file(Path(name)).read_bytes() == (RECIPES / "demo.yaml").read_bytes()  # of a wheel, elsewhere
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("model: house\n")
    assert recipe_file(Path(name)) == Path(name)  # one's own goes first


@pytest.mark.parametrize("name", ["nowhere.yaml", "other/demo.yaml", "/demo.yaml"])
def test_what_is_neither_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{name}: no such recipe"):
        recipe_file(Path(name))
