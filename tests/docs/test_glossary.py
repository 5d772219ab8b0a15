"""The glossary names code that exists, and explains each term once."""

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
NAMES = sorted(set(re.findall(r"`(errata(?:\.\w+)+)", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_glossary_names_exists(name):
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"{name} does not exist")


def test_each_term_is_explained_once():
    terms = re.findall(r"^\| ([^|]+?) \|", TEXT, re.MULTILINE)
    terms = [t for t in terms if t != "term"]
    assert len(terms) > 90
    assert len(terms) == len(set(terms))
