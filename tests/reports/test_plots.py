"""Files for papers: they are drawn, hold their text as text, and say what a line is."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from errata.reports.plots import slug, write_plots

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'errata[report]'")


def texts(file):
    return {"".join(e.itertext()).strip() for e in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")}


def test_every_open_curve_becomes_two_files(runs, tmp_path):
    files = write_plots([runs["grpo-0"], runs["grpo-1"]], tmp_path / "figures")
    names = {file.name for file in files}
    assert {"avg@8.svg", "avg@8.png", "reward.svg", "entropy.svg", "groups-without-a-contrast.svg"} <= names
    assert not any("learning-rate" in name for name in names)
    assert (tmp_path / "figures" / "avg@8.png").read_bytes().startswith(b"\x89PNG")
    assert {"optimizer step", "avg@8 (%)"} <= texts(tmp_path / "figures" / "avg@8.svg")


def test_lines_of_several_methods_are_named_and_the_file_is_the_same_each_time(runs, tmp_path):
    some = [runs["grpo-0"], runs["drift-0"]]
    first, second = write_plots(some, tmp_path / "a"), write_plots(some, tmp_path / "b")
    assert {"grpo", "drift"} <= texts(tmp_path / "a" / "avg@8.svg")
    assert (tmp_path / "a" / "avg@8.svg").read_bytes() == (tmp_path / "b" / "avg@8.svg").read_bytes()
    assert len(first) == len(second)


def test_without_matplotlib_the_mend_is_said(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'errata\[report\]'"):
        write_plots([runs["grpo-0"]], tmp_path)


@pytest.mark.parametrize(("title", "name"), [("avg@8", "avg@8"), ("Entropy: student", "entropy-student")])
def test_names(title, name):
    assert slug(title) == name
