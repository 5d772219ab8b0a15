"""``errata doctor`` says a line for each check, also where one fails, and ends well only if its own test passes."""

import pytest

from errata.cli import main
from errata.commands import doctor


def test_every_check_has_a_line_and_the_self_test_passes(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("system", "packages", "optional", "torch", "isolation", "disk", "hub", "self-test"),
    ]
    assert "torch 2." in lines[1]
    assert "HF_HUB_OFFLINE" in lines[6]
    assert "passed in" in lines[7]


@pytest.mark.parametrize(("name", "status"), [("disk", 0), ("self-test", 1)])
def test_a_check_that_fails_says_so(capsys, monkeypatch, name, status):
    def fails():
        raise OSError("no such\nthing")

    monkeypatch.setattr(doctor, "self_test", fails if name == "self-test" else doctor.self_test)
    monkeypatch.setattr(doctor, "CHECKS", {name: fails})
    assert main(["doctor"]) == status
    assert capsys.readouterr().out == f"{name:<12} FAILED: OSError: no such thing\n"


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.hub().startswith("127.0.0.1 cannot be reached:")
