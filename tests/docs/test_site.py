"""The documentation site: its code runs, its commands and recipes are accepted, its reference has no gaps."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from errata.recipe.read import read

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*(DOCS / "tutorials").glob("*.md"), *(DOCS / "howto").glob("*.md")])
NOTEBOOK = DOCS / "notebooks" / "first_run.ipynb"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def shortened(code):
    """The same code with trainings of one small step."""
    code = re.sub(r'("?max_steps"?\s*[:=]\s*)\d+', r"\g<1>1", code)
    return re.sub(r'("?per_device_train_batch_size"?\s*[:=]\s*)\d+', r"\g<1>8", code)


@pytest.fixture
def hook():
    spec = importlib.util.spec_from_file_location("site_hook", DOCS / "hooks" / "site.py")
    module = importlib.util.module_from_spec(spec)
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        assert "max_steps" in block or "train()" not in block
        exec(compile(shortened(block), f"{page.name}", "exec"), names)


def test_the_notebook_is_code_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 5
    for cell in cells:
        exec(compile(shortened("".join(cell["source"])), "first_run.ipynb", "exec"), names)
    assert "report.html" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


@pytest.mark.parametrize(
    ("page", "block"), [(p.stem, b) for p in PAGES for b in blocks(p, "yaml")], ids=lambda v: v[:12]
)
def test_a_recipe_of_a_page_is_accepted(page, block, tmp_path):
    settings = yaml.safe_load(block)
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({"model": "house", "task": "rulebook/new-rule", **settings}))
    assert read(file, []).config.method == settings["method"]


def test_every_public_name_is_documented(hook):
    for package in hook.PACKAGES:
        assert hook.public(package)
        assert hook.undocumented(package) == []


def test_a_name_without_a_docstring_is_found(hook, monkeypatch):
    import errata

    class Bare:
        """Documented."""

        def method(self):
            pass

    Bare.__module__ = "errata"
    monkeypatch.setattr(errata, "Bare", Bare, raising=False)
    monkeypatch.setattr(errata, "__all__", ["Bare"])
    assert hook.undocumented("errata") == ["errata.Bare.method"]


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?://[^\"]*)", page.read_text())
        assert fetched == [], page
    for script in (tmp_path / "site").rglob("*.js"):
        assert not re.search(r"https://(unpkg|cdn|fonts)", script.read_text()), script


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path):
    for name in ("docs", "mkdocs.yml", "README.md", "src", "recipes", "examples"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    with (tmp_path / "docs" / "theory.md").open("a") as page:
        page.write("\n[nowhere](no_such_page.md)\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no_such_page.md" in done.stderr
