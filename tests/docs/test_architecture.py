"""The page on architecture names functions that exist, in the files that hold them."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import errata

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
ROOT = Path(errata.__file__).parent
NAMES = sorted(set(re.findall(r"`(errata(?:\.\w+)+)`", TEXT)))
WAY = re.findall(r"\| `(errata(?:\.\w+)+)` \| `([\w/]+\.py)` \|", TEXT)
FILES = sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", TEXT)))


def found(name):
    """What a dotted name stands for."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            value = getattr(value, attribute)
        return value
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name):
    found(name)


@pytest.mark.parametrize(("name", "file"), WAY)
def test_each_function_is_in_its_file(name, file):
    assert Path(inspect.getsourcefile(inspect.unwrap(found(name)))) == ROOT / file


def test_the_way_is_told_from_the_recipe_to_the_teachers_update():
    assert len(WAY) > 35
    assert WAY[0][0] == "errata.cli.main"
    assert len(set(WAY)) == len(WAY)


@pytest.mark.parametrize("file", FILES)
def test_each_file_and_folder_exists(file):
    assert (ROOT / file).exists() or (ROOT.parents[1] / file).exists()


def test_links_lead_somewhere():
    docs = Path(__file__).parents[2] / "docs"
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (docs / target).is_file(), target
