"""The numbers of docs/results.md are those of the recorded runs."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_of_the_guard_is_that_of_its_records():
    guard = module("guard")
    text = (ROOT / "docs" / "results.md").read_text()
    shown = text.split(guard.BEGIN)[1].split(guard.END)[0].strip()
    assert shown == guard.table(guard.load())
    records = guard.load()["cells"]
    for cell in records.values():  # the guard's promise
        if "with" in cell:
            accuracy = [e["accuracy"] for e in cell["with"]["evaluations"]]
            assert accuracy[-1] == max(accuracy)
