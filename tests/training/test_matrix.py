"""The matrix method x teacher x engine: fourteen cells, and all of them among the slow tests (`scripts/scale_matrix.py`)."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import scale_matrix

EQUAL = [
    "grpo:none:zero1",
    "distil:ema:fsdp2",  # saving its teacher waited for ever
    "distil:ema:zero3",
    "distil:trust_region:zero3",
    "distil:lora-ema:zero2",
    "distil:lora-ema:fsdp2",
    "distil:live:fsdp1",
    "drift:ema:fsdp2",  # processes ran different numbers of teacher forwards
    "drift:ema:ddp2",
    "replay:ema:zero3",
    "server-expert:none:fsdp2",
]
REFUSED = {
    "distil:ema:fsdp1": "teacher: FSDP1 flattens",
    "distil:lora-live:fsdp1": "use_peft: FSDP1 saves an adapter without its weights",
    "replay:live:zero3": "replay_capacity: with a teacher that is the policy itself",
}


TURNS = ["turns:ema:fsdp2", "turns:live:fsdp1", "turns:live:zero3", "turns:live:ddp2"]
"""No row of the table: each turn of a rollout has a teacher's prompt of its own."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return dict(scale_matrix.run(tmp_path_factory.mktemp("matrix"), [*EQUAL, *REFUSED]))


@pytest.mark.parametrize("cell", EQUAL)
def test_two_processes_are_one(results, cell):
    assert results[cell]["result"] == "equal", results[cell]


@pytest.mark.slow
@pytest.mark.parametrize("engine", scale_matrix.ENGINES)
def test_every_cell_is_equal_or_refused(engine, tmp_path):
    pytest.importorskip("deepspeed")
    known = json.loads(scale_matrix.RESULTS.read_text())
    cells = [cell for cell in [*scale_matrix.cells(), *TURNS] if cell.endswith(f":{engine}")]
    found = {cell: result["result"] for cell, result in scale_matrix.run(tmp_path, cells)}
    assert found.keys() == set(cells)
    assert {cell: known.get(cell, {"result": "equal"})["result"] for cell in cells} == found


@pytest.mark.parametrize("cell", REFUSED)
def test_what_cannot_work_is_refused_by_name(results, cell):
    assert results[cell]["result"] == "refused", results[cell]
    assert REFUSED[cell] in results[cell]["why"]
    assert "use FSDP2" in results[cell]["why"]


def written(folder, cell, loss, weight):
    """The files of a cell that ran, with one weight."""
    logs = [{"step": 1, "loss": loss, "grad_norm": 2.0}, {"step": 1, "eval_score": 0.5}]
    (folder / f"{scale_matrix.stem(cell)}.json").write_text(
        json.dumps({"status": "ran", "logs": logs, "again": logs, "memory": {}})
    )
    for place in ("final", "again"):
        path = folder / scale_matrix.stem(cell) / place
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        save_file({"w": torch.tensor([weight])}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("loss", "weight", "expected"),
    [
        (1.000001, 1.0, "equal"),
        (1.0001, 1.0, "the run's loss of step 1 is 1.0001, not 1"),
        (float("nan"), 1.0, "the run's loss of step 1 is nan, not 1"),
        (1.0, 1.001, "final/model.safetensors: w differs by 0.001"),
    ],
)
def test_a_difference_is_seen(tmp_path, loss, weight, expected):
    written(tmp_path, "distil:ema:one", 1.0, 1.0)
    written(tmp_path, "distil:ema:zero3", loss, weight)
    found = scale_matrix.compare(tmp_path, "distil:ema:zero3")
    assert found["result"] == ("equal" if expected == "equal" else "different")
    assert expected == "equal" or expected in found["why"]
    (tmp_path / "distil-ema-zero3" / "again" / "model.safetensors").unlink()
    assert "again/model.safetensors was not written" in scale_matrix.compare(tmp_path, "distil:ema:zero3")["why"]


def test_the_page_holds_the_results():
    results = json.loads(scale_matrix.RESULTS.read_text(encoding="utf-8"))
    page = scale_matrix.PAGE.read_text(encoding="utf-8")
    assert scale_matrix.render(results, page) == page
    assert set(results) <= set(scale_matrix.cells())
    assert len(scale_matrix.cells()) == 43 * 7


def test_a_covering_set_has_every_pair_of_the_cells_left():
    chosen = scale_matrix.covering({})
    pairs = {pair for cell in scale_matrix.cells() for pair in scale_matrix.pairs(cell)}
    assert {pair for cell in chosen for pair in scale_matrix.pairs(cell)} == pairs
    assert len(chosen) < 90
    refused = {cell: {"result": "equal"} for cell in chosen} | {"distil:ema:fsdp1": {"result": "refused"}}
    again = scale_matrix.covering({**refused, chosen[0]: {"result": "refused"}})
    assert all(cell not in refused for cell in again)
    assert scale_matrix.covering({cell: {"result": "equal"} for cell in chosen}) == []


def test_a_cell_without_a_result_is_named():
    text = scale_matrix.table({"grpo:none:ddp2": {"result": "failed", "why": "hangs"}})
    row = next(line for line in text.splitlines() if line.startswith("| grpo"))
    assert row == "| grpo | – | failed (1) | not run | not run | not run | not run | not run | not run |"
    assert "1 of 301 cells were run: 1 failed." in text
    assert "1. hangs" in text
