"""What a user installs: extras, locked versions, and the files that a project needs to be shared."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_extras_that_errors_and_docs_name_exist():
    extras = PROJECT["optional-dependencies"]
    named = {}
    for folder in ("src", "docs", "recipes", "README.md"):
        for file in [ROOT / folder, *(ROOT / folder).rglob("*")]:
            if file.suffix in (".py", ".md", ".yaml"):
                for names in re.findall(r"errata\[([\w, -]+)\]|-e '?\.\[([\w, -]+)\]", file.read_text()):
                    for name in re.split(r",\s*", "".join(names)):
                        named.setdefault(name, file)
    assert {"math", "server", "report", "smollm2", "reasoning-gym", "completion"} <= set(named)
    assert {name: file for name, file in named.items() if name not in extras} == {}


@pytest.fixture(scope="module")
def locked():
    versions = {}
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        versions.setdefault(package["name"], set()).add(package.get("version"))
    return versions


def test_the_lock_holds_the_versions_that_the_tests_ran_with(locked):
    pins = re.findall(r"^([\w.-]+)==([^\s+]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(pins) > 100
    for name, version in pins:
        assert version in locked[re.sub(r"[-_.]+", "-", name).lower()], name


def test_the_lock_holds_every_dependency(locked):
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        assert re.match(r"[\w-]+", requirement)[0].lower() in locked


def test_the_lock_names_public_addresses_only():
    addresses = set(re.findall(r"\w+://[^/\"\s]+/?[^/\"\s]*", (ROOT / "uv.lock").read_text()))
    assert addresses == {"https://pypi.org/simple", "https://files.pythonhosted.org/packages"}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("SECURITY.md", "Report a vulnerability"),
        ("CODE_OF_CONDUCT.md", "Tell the maintainers"),
        ("CONTRIBUTING.md", "make test"),
        ("CITATION.cff", "cff-version"),
        ("LICENSE", "Apache License"),
        (".github/pull_request_template.md", "`make test` passes"),
    ],
)
def test_a_file_for_those_who_share_is_there(file, says):
    assert re.search(says, (ROOT / file).read_text())


def test_issue_templates_and_the_release_workflow_are_yaml_that_does_its_work():
    templates = [yaml.safe_load(f.read_text()) for f in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))]
    assert [t["name"] != "" and len(t["body"]) > 0 for t in templates] == [True, True]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    for part in ("make docs", "python -m build", "twine check --strict", "errata train demo.yaml"):
        assert part in commands
    assert jobs["publish"]["needs"] == "build"
