"""What mkdocs does beside rendering: the reference's pages, links to files outside ``docs/``, and the check of public names.

The reference has a page for each package of ``PACKAGES``, with every name of its ``__all__``. A name without a docstring, or one
with a public method or property without a docstring, is a warning, and the strict build fails.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE_NAMES = ("methods", "feedback", "contexts", "experts", "experience", "evaluation", "tasks")
PACKAGES = ("errata", *(f"errata.{name}" for name in PACKAGE_NAMES))
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".ipynb": "json"}
_UNPKG = re.compile(r"https://unpkg\.com/[\w@./-]+")
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")
logger = logging.getLogger("mkdocs.hooks.site")


def public(package: str) -> list[str]:
    """The dotted names that a package offers, values such as constants apart."""
    module = importlib.import_module(package)
    found = {name: getattr(module, name) for name in module.__all__}
    return [f"{package}.{name}" for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)]


def undocumented(package: str) -> list[str]:
    """Public names of a package, and public members of its classes, without a docstring of their own."""
    module = importlib.import_module(package)
    found = []
    for name in public(package):
        value = getattr(module, name.rpartition(".")[2])
        if not (value.__doc__ or "").strip() or (value.__doc__ or "").startswith(f"{value.__name__}("):
            found.append(name)
        if not inspect.isclass(value) or not value.__module__.startswith("errata"):
            continue
        for member, thing in vars(value).items():
            own = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
            if member.startswith("_") or not (inspect.isfunction(own) or isinstance(thing, property)):
                continue
            if not inspect.getdoc(getattr(value, member)):
                found.append(f"{name}.{member}")
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the reference's pages and the front page, which is the README."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    for package in PACKAGES:
        for name in undocumented(package):
            logger.warning("%s has no docstring", name)
        page = f"reference/{package.removeprefix('errata.')}.md"
        module = importlib.import_module(package)
        lines = [f"# {package}", (module.__doc__ or "").strip().replace("``", "`")]
        lines += [f"::: {_origin(name)}" for name in public(package)]
        files.append(File.generated(config, page, content="\n\n".join(lines) + "\n"))
    files.append(File.generated(config, "index.md", content=_front()))
    texts = [((ROOT / "docs" / f.src_uri).parent, f.content_string) for f in files.documentation_pages()]
    for path in sorted({path for here, text in texts for path in _outside(text, here)}):
        text = f"# {path.relative_to(ROOT)}\n\n{_shown(path)}"
        files.append(File.generated(config, _place(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository outside ``docs/`` into links to pages that show them."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        path = (here / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.exists():
            return match[0]  # mkdocs checks it
        return f"]({os.path.relpath(ROOT / 'docs' / _place(path), here)}{match[2] or ''})"

    return _LINK.sub(shown, markdown)


def _place(path: Path) -> str:
    return f"files/{path.relative_to(ROOT)}.md"


def on_post_build(config: Any) -> None:
    """Take out of the theme's script the addresses from which it would load helpers that this site does without: for pages
    opened as files, for old browsers, for Mermaid's diagrams."""
    for script in Path(config["site_dir"]).glob("assets/javascripts/bundle.*.js"):
        text = script.read_text(encoding="utf-8")
        script.write_text(_UNPKG.sub("data:text/javascript,", text), encoding="utf-8")


def on_pre_build(config: Any) -> None:
    """Nothing is fetched while the site is built."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _origin(name: str) -> str:
    """Where a name is defined, which is where its docstring and signature are."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    return f"{value.__module__}.{value.__qualname__}"


def _front() -> str:
    """The README with its links as seen from ``docs/``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(
        r"\]\((?!https?:|#)((?:LOG|CONTRIBUTING|CHANGELOG|examples|LICENSE|SECURITY|recipes|src)[^)]*)\)",
        r"](../\1)",
        text,
    )


def _shown(path: Path) -> str:
    """A file of the repository as Markdown; of a folder the names of its files."""
    if path.is_dir():
        return "\n".join(f"- {file.relative_to(path)}" for file in sorted(path.rglob("*")) if file.is_file())
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return _without_links(text)
    return f"~~~~{LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~\n"


def _without_links(text: str) -> str:
    """A page of the repository without its front matter, its title and its links, which lead to places outside the site."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\A\s*# .*\n", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def _outside(text: str, here: Path) -> list[Path]:
    found = [(here / match[1]).resolve() for match in _LINK.finditer(text)]
    return [path for path in found if path.exists() and not path.is_relative_to(ROOT / "docs")]
