"""The import table of the house, checked in fresh interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

import errata

ROOT = Path(errata.__file__).parent
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")

ALLOWED = {
    # room: what importing all its modules may load of ours (besides itself) and of the heavy libraries
    "records": (set(), set()),
    "ops": (set(), {"torch"}),
    "feedback": ({"records"}, set()),
    "contexts": ({"records"}, set()),
    "experience": ({"records"}, set()),
    "tasks": ({"records", "feedback", "house"}, {"datasets"}),
    "methods": ({"records", "contexts", "experience", "ops"}, {"torch"}),
    "experts": ({"records", "ops"}, {"torch", "transformers"}),
    "evaluation": ({"records", "tasks", "feedback"}, set()),
    "reports": ({"records"}, set()),
    "theory": ({"ops", "methods", "contexts", "experience"}, {"torch"}),
}


def loaded_by(code):
    """Names of the heavy libraries and of our rooms in sys.modules after running ``code``."""
    probe = f"import sys\n{code}\nprint(' '.join(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    heavy = {m for m in out if m in HEAVY}
    rooms = {m.split(".")[1] for m in out if m.startswith("errata.")}
    return heavy, rooms


def modules_of(room):
    if (ROOT / f"{room}.py").is_file():
        return [f"errata.{room}"]
    paths = [p for p in (ROOT / room).rglob("*.py") if p.name != "__main__.py"]
    return sorted(
        ".".join(("errata", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for p in paths
    )


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_the_table_allows(room):
    heavy, rooms = loaded_by("\n".join(f"import {m}" for m in modules_of(room)))
    allowed_rooms, allowed_heavy = ALLOWED[room]
    assert heavy <= allowed_heavy
    assert rooms - {room, "records"} <= allowed_rooms


def test_import_errata_is_light():
    heavy, _ = loaded_by("import errata")
    assert heavy == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["eval", "--help"], ["theory", "--help"]]
)
def test_help_is_light(arguments):
    call = f"main({arguments!r})"
    code = f"from errata.cli import main\ntry:\n    {call}\nexcept SystemExit as e:\n    assert e.code == 0\nprint()"
    heavy, _ = loaded_by(code)
    assert heavy == set()
