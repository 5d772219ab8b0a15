"""The import table of docs/architecture.md, checked in fresh interpreters and in the source."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import errata

ROOT = Path(errata.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")


def table():
    """package -> what importing it may load of errata, what its functions may import besides, and the heavy libraries."""
    section = PAGE.read_text().split("## Who may import whom")[1].split("\n## ")[0]
    rows = {}
    for line in re.findall(r"^\| `.*\|$", section, re.MULTILINE):
        package, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        loads, later, heavy = (set() if c == "–" else {name.strip() for name in c.split(",")} for c in cells)
        rows[package.strip("`")] = (loads, later, set(HEAVY) if heavy == {"all"} else heavy)
    return rows


TABLE = table()


def loaded_by(code):
    """Names of the heavy libraries and of our modules (without "errata.") in sys.modules after running ``code``."""
    probe = f"import sys\n{code}\nprint(' '.join(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    return {m for m in out if m in HEAVY}, {m.removeprefix("errata.") for m in out if m.startswith("errata.")}


OF_OTHER_LIBRARIES = ("adapters/inspect.py", "adapters/verifiers.py")
"""They import libraries that errata does not install."""


def files_of(package):
    if (ROOT / f"{package}.py").is_file():
        return [ROOT / f"{package}.py"]
    found = (p for p in (ROOT / package).rglob("*.py") if p.name != "__main__.py")
    return sorted(p for p in found if str(p.relative_to(ROOT)) not in OF_OTHER_LIBRARIES)


def module_of(path):
    return ".".join(("errata", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported_in(path):
    """Modules of ours (without "errata.") that a file names in an import statement, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("errata.") for name in names if name.startswith("errata.")}


@functools.cache
def loaded_with(package):
    """As ``loaded_by``, of importing all modules of a package."""
    return loaded_by("\n".join(f"import {module_of(p)}" for p in files_of(package)))


def is_allowed(module, package, allowed):
    """Whether ``module`` is the package's own, records, validate, or in ``allowed``: packages, or modules of one."""
    parts = module.split(".")
    if parts[0] in {package, "records", "validate", "__version__"} | allowed or ".".join(parts[:2]) in allowed:
        return True
    return len(parts) == 1 and any(
        name.startswith(f"{module}.") for name in allowed
    )  # the package around such a module


def test_the_table_names_every_package():
    found = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert set(TABLE) == found - {"__init__", "__main__"}


@pytest.mark.parametrize("package", TABLE)
def test_importing_a_package_loads_what_the_table_allows(package):
    heavy, modules = loaded_with(package)
    loads, _, heavy_allowed = TABLE[package]
    assert heavy <= heavy_allowed
    assert [m for m in modules if not is_allowed(m, package, loads)] == []


@pytest.mark.parametrize("package", TABLE)
def test_a_package_names_in_its_imports_what_the_table_allows(package):
    loads, later, _ = TABLE[package]
    for path in files_of(package):
        if path.parent.name == "starter":  # what `errata init` writes for the user
            continue
        assert [m for m in imported_in(path) if not is_allowed(m, package, loads | later)] == [], path.name


@pytest.mark.parametrize("package", TABLE)
def test_the_table_allows_nothing_that_is_not_used(package):
    loads, later, heavy_allowed = TABLE[package]
    heavy, modules = loaded_with(package)
    named = {m for path in files_of(package) for m in imported_in(path)}
    assert heavy == heavy_allowed
    assert {name for name in loads if name not in modules} == set()
    assert {name for name in later if not any(m.split(".")[0] == name for m in named)} == set()


def test_import_errata_is_light():
    heavy, _ = loaded_by("import errata")
    assert heavy == set()


# `train --help` is not: it lists the settings of TRL, whose explanations are in TRL.
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compare", "--help"], ["eval", "--help"], ["theory", "--help"]]
)
def test_help_is_light(arguments):
    call = f"main({arguments!r})"
    code = f"from errata.cli import main\ntry:\n    {call}\nexcept SystemExit as e:\n    assert e.code == 0\nprint()"
    heavy, _ = loaded_by(code)
    assert heavy == set()
