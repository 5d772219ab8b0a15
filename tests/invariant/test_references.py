"""What three steps of every preset logged before the rebuild of errata's internals, they log still.

``python -m tests.invariant.write CELL`` writes a reference anew: only for a number that is meant to change, in a commit
of its own that says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.invariant.cells import CELLS, PRESETS, REFERENCES, RENAMED, Cell
from tests.invariant.worker import Worker, run_fresh
from tests.invariant.write import PROCESSOR, load, processor

from errata import methods

THE_SAME_PROCESSOR = PROCESSOR.read_text() == processor()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def _param(cell: Cell) -> Any:
    return pytest.param(cell, id=cell.name, marks=() if cell.default else pytest.mark.slow)


@pytest.mark.parametrize("cell", map(_param, CELLS))
def test_three_steps_are_as_they_were(cell, worker, tmp_path):
    _agree(worker.run(cell, tmp_path / "cell"), cell)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distil-p1-m4", "drift-p2-m4"])
def test_the_worker_computes_what_the_command_line_does(name, tmp_path):
    cell = next(c for c in CELLS if c.name == name)
    _agree(run_fresh(cell, tmp_path / "cell"), cell)


def test_every_preset_and_every_cell_has_its_references():
    assert methods.names() == PRESETS
    assert sorted(path.stem for path in REFERENCES.glob("*.json")) == sorted(cell.name for cell in CELLS)


def _agree(found: dict[str, list[Any]], cell: Cell) -> None:
    expected = {RENAMED.get(name, name): values for name, values in load(cell).items()}
    assert found.keys() == expected.keys()
    differing = {
        name: {"found": found[name], "expected": expected[name]}
        for name in expected
        if not _equal(found[name], expected[name], exactly=cell.processes == 1 and THE_SAME_PROCESSOR)
    }
    assert not differing


def _equal(found: list[Any], expected: list[Any], *, exactly: bool) -> bool:
    """One process repeats bit for bit on the processor that wrote the reference.

    Elsewhere products may be summed in another order, and with two processes it is the network's: then 1e-6 is allowed.
    """
    if exactly or len(found) != len(expected):
        return found == expected
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6))
        for a, b in zip(found, expected, strict=True)
    )
