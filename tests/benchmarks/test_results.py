"""The cells of docs/results.md, their records, and the page made of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import results
import results_cells
import results_render
from results_cells import CELLS, RECORDS, ROOT, TAUGHT, Cell

FILES = sorted(p for p in RECORDS.glob("*/*/*.json") if p.parts[-3] not in ("agent", "along"))


def test_every_record_is_one_of_a_cell_and_has_its_settings():
    assert len(FILES) >= 18
    for file in FILES:
        record = json.loads(file.read_text())
        cell = CELLS[str(file.relative_to(RECORDS).with_suffix(""))]
        assert record["cell"] == cell.name
        assert record["settings"] == json.loads(json.dumps(cell.settings())), cell.name
        assert [(row["step"], row["k"]) for row in record["curve"]] == list(cell.at.items()), cell.name
        assert len(record["solved"]) == cell.problems
        assert record["avg@1"] == pytest.approx(sum(record["solved"]) / cell.problems / record["samples"])


def test_the_page_is_what_the_records_give():
    assert results_render.page(results_render.PAGE.read_text()) == results_render.PAGE.read_text()


def test_a_run_takes_the_rate_and_the_teacher_of_its_best_trial(monkeypatch, tmp_path):
    monkeypatch.setattr(results_cells, "RECORDS", tmp_path)
    cell = CELLS["new-rule/sdpo/seed-1"]
    with pytest.raises(ValueError, match=r"new-rule/sdpo/seed-1: its learning rate is chosen by .*rate-0.001.*first"):
        cell.settings()
    for name, accuracy in zip(TAUGHT, (0.1, 0.2, 0.3, 0.3, 0.4, 0.2), strict=True):
        results.keep(CELLS[f"new-rule/sdpo/{name}"], {"avg@1": accuracy, "settings": TAUGHT[name]})
    assert (cell.settings()["learning_rate"], cell.settings()["teacher"]) == (4e-3, "ema")
    assert cell.settings()["seed"] == 1


def test_records_that_differ_are_told_apart_but_for_their_seconds():
    curve = [{"step": 1, "pass@k": {"1": 0.5}, "cpu_s": 3.0, "wall_s": 4.0}]
    old = {"avg@1": 0.5, "pass@k": {"1": 0.5}, "solved": [1, 0], "curve": curve, "tokens": 7}
    assert results.differences(old, {**old, "curve": [{**curve[0], "cpu_s": 9.0}]}) == []
    assert results.differences(old, {**old, "curve": [{**curve[0], "step": 2}], "tokens": 8}) == ["curve", "tokens"]


def test_p_is_students():
    # t = 3.4641 with 2 degrees of freedom, t = 0 and t = 2 with 4: from tables
    assert results_render.p_value([1, 2, 3]) == pytest.approx(0.0742, abs=1e-4)
    assert results_render.p_value([-1, 0, 1]) == pytest.approx(1.0)
    assert results_render.p_value([1.0, 1.0, 1.0]) == 0.0
    assert results_render.p_value([0.1, -0.1, 0.3, 0.5, 0.2]) == pytest.approx(0.1161, abs=1e-4)


def test_what_follows_from_differences():
    assert results_render.verdict([])[2] == "not run"
    assert results_render.verdict([0.2])[2] == "open: one seed"
    assert results_render.verdict([0.20, 0.21, 0.22]) == ["+0.21 [+0.19, +0.23]", "0.001", "holds here"]
    assert results_render.verdict([-0.20, -0.21, -0.22])[2] == "does not hold here: the opposite"
    assert results_render.verdict([0.2, -0.2])[2] == "not shown: may be chance"


def test_pass_at_8_at_an_accuracy_lies_on_the_line_between_two_evaluations():
    curve = [{"pass@k": {"1": a, "8": b}} for a, b in ((0.1, 0.2), (0.3, 0.6), (0.5, 0.7))]
    assert results_render.at_equal({"curve": curve}, 0.2) == pytest.approx(0.4)
    assert results_render.at_equal({"curve": curve}, 0.4) == pytest.approx(0.65)
    assert results_render.at_equal({"curve": curve}, 0.6) is None


def test_missing_cells_are_named():
    cells = [Cell(f"none/such/seed-{seed}", "such", seed, {}) for seed in range(3)]
    assert results_render.missing(cells) == "Missing: `none/such` (all)."
    first = CELLS["new-rule/sdpo/seed-0"]
    assert results_render.missing([first]) == "No run is missing."
    others = [Cell(f"new-rule/sdpo/seed-{seed}", "sdpo", seed, {}) for seed in (88, 99)]
    assert results_render.missing([first, *others]) == "Missing: `new-rule/sdpo/seed-88, 99`."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new-rule/sdpo/rate-0.004", "new-rule/distil/seed-0"])
def test_a_cell_gives_its_record_again(name):
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "--cell", name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the same as its record" in done.stderr
