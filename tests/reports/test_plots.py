"""Files for papers: they are drawn, hold their text as text, and say what a line is."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from errata.reports.plots import slug, write_plots
from errata.reports.rundir import RunDirectory

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'errata[report]'")


def texts(file):
    return {"".join(e.itertext()).strip() for e in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture
def small(tmp_path):
    """Two methods with a curve of each sort: evaluated with a band, trained and smoothed, folded."""
    paths = []
    for method in ("grpo", "drift"):
        run = RunDirectory(tmp_path / method)
        run.open({"method": method, "seed": 0})
        for step in range(1, 61):
            run.write("metrics", {"step": step, "reward": step / 60, "learning_rate": 1e-3})
        for step in (0, 30, 60):
            run.write("eval", {"step": step, "k": 8, "avg@8": 0.1, "avg@8_low": 0.05, "avg@8_high": 0.2})
        paths.append(run.path)
    return paths


def test_every_open_curve_becomes_two_files(small, tmp_path):
    files = write_plots(small[:1], tmp_path / "figures")
    assert [file.name for file in files] == ["avg@8.svg", "avg@8.png", "reward.svg", "reward.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert {"optimizer step", "avg@8 (%)"} <= texts(files[0])


def test_lines_of_several_methods_are_named_and_the_file_is_the_same_each_time(small, tmp_path):
    first, second = write_plots(small, tmp_path / "a"), write_plots(small, tmp_path / "b")
    assert {"grpo", "drift"} <= texts(first[0])
    assert first[0].read_bytes() == second[0].read_bytes()


def test_without_matplotlib_the_mend_is_said(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'errata\[report\]'"):
        write_plots(small, tmp_path)


@pytest.mark.parametrize(("title", "name"), [("avg@8", "avg@8"), ("Entropy: student", "entropy-student")])
def test_names(title, name):
    assert slug(title) == name
