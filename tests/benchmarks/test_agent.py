"""The records of benchmarks/agent.py are of its cells, and the page shows what they give."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import agent

from errata.recipe.text import load_mapping


def test_every_record_is_one_of_a_cell_and_has_its_settings():
    recipe = load_mapping(agent.RECIPE)
    files = sorted((agent.RECORDS / "agent").glob("*/*.json"))
    assert len(files) >= 5
    for file in files:
        cell = agent.CELLS[str(file.relative_to(agent.RECORDS / "agent").with_suffix(""))]
        record = json.loads(file.read_text())
        assert record["settings"] == json.loads(json.dumps({**recipe, "method_args": {}, **cell.settings()})), cell.name
        assert list(record["avg"].values())[-1] * agent.PROBLEMS * agent.K == sum(record["solved"])


def test_the_page_shows_the_records():
    shown = agent.PAGE.read_text().split(agent.BEGIN)[1].split(agent.END)[0].strip()
    assert shown == agent.table()
