"""The table, the page and the JSON, as a user meets them."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import errata.theory
from errata.theory import mdp, monotone
from errata.theory.claims import Claim

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def parts():
    return [monotone.study(), mdp.study()]


@pytest.fixture
def quick(parts, monkeypatch):
    """The real parts, less the four slow ones."""
    monkeypatch.setattr(errata.theory, "study", lambda: parts)
    return parts


def test_the_page_is_whole_and_needs_nothing_from_outside(quick, tmp_path, capsys):
    out = tmp_path / "new" / "theory.html"
    assert errata.theory.run(out=out) == 0
    document = out.read_text(encoding="utf-8")
    assert document.count("<svg") == 2
    assert document.count("currentColor") > 20
    for outside in ("<script", "<link", "<img", "src=", '@import"'):
        assert outside not in document
    for part in quick:
        assert part.title in document
    assert f"wrote {out}" in capsys.readouterr().out.replace("\n", "")


def test_ids_do_not_clash_between_pictures(parts):
    from errata.theory.page import page

    document = page(parts)
    ids = [piece.split('"')[0] for piece in document.split(' id="')[1:]]
    assert len(ids) == len(set(ids)) > 4
    for reference in document.split("url(#")[1:]:
        assert reference.split(")")[0] in ids


def test_a_picture_is_valid_xml_and_the_same_each_time(parts):
    from errata.theory.page import svg

    picture = parts[0].pictures[0]
    drawing = svg(picture, own_colours=True)
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in drawing
    assert svg(picture, own_colours=True) == drawing


def test_the_table_shows_claims_and_the_status_tells_of_a_surprise(quick, tmp_path, capsys, monkeypatch):
    surprise = Claim("Water flows uphill", "none", holds=False, numbers="0 of 1")
    part = errata.theory.claims.Part("Physics", "Physics.\n\nNot ours.", (surprise,), {"physics": {}}, ())
    monkeypatch.setattr(errata.theory, "study", lambda: [part])
    assert errata.theory.run(out=tmp_path / "x.html") == 1
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Water flows" in printed
    assert "(unexpected)" in printed


def test_json_prints_numbers_and_writes_no_page(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert errata.theory.run(json=True) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert list(numbers) == ["monotone", "mdp"]
    assert list(Path().iterdir()) == []


def test_without_matplotlib_the_table_is_printed_and_the_mend_named(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert errata.theory.run(out=tmp_path / "theory.html") == 0
    printed = capsys.readouterr()
    assert "holds" in printed.out
    assert "matplotlib is missing; pip install 'errata[report]'" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_run(tmp_path, capsys):
    assert errata.theory.run(json=True, out=tmp_path / "theory.html") == 0
    numbers = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    keys = ["bandit", "random_bandits", "monotone", "mdp", "regret", "pass_at_n", "estimators"]
    assert list(numbers) == keys
    assert list(numbers["estimators"]) == ["3", "4", "5"]
    for row in numbers["estimators"].values():
        assert list(row) == ["none", "sum", "mean", "reweight"]
    assert (tmp_path / "theory.html").stat().st_size < 1_000_000
