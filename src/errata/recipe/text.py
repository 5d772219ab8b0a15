"""Reads the text of a recipe: YAML whose keys are texts, each given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the standard keeps the last value silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"{key.value}: given in lines {lines[key.value]} and {line}; leave one of them out")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def recipe_file(path: Path) -> Path:
    """The recipe's file: ``path``, or one that the package carries, by its name: ``demo.yaml``, ``recipes/demo.yaml``.

    Raises ``ValueError`` where there is neither.
    """
    if path.is_file():
        return path
    here = Path(__file__).parents[1]
    for folder in (here / "recipes", here.parents[1] / "recipes"):  # of an installed package, of a repository
        if path.parent.name in ("", "recipes") and not path.is_absolute() and (folder / path.name).is_file():
            return folder / path.name
    raise ValueError(f"{path}: no such recipe")


def load_mapping(path: Path) -> dict[str, Any]:
    """The settings in a recipe's file.

    Raises ``ValueError`` naming the file, and the line where there is one: a missing or unreadable file, malformed YAML, a
    key that is no text or is given twice.
    """
    path = recipe_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        loaded = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not a recipe: its lists or mappings are nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: must be a mapping of argument names to values")
    for key in loaded:
        if not isinstance(key, str):
            raise ValueError(f"{path}: {key!r} is no argument's name; a recipe's keys are texts")
    # YAML reads 1e-5 as text; every number here is meant as one.
    return {key: as_number(value) for key, value in loaded.items()}


def as_number(value: Any) -> Any:
    """``value`` with the numbers in it that YAML takes for texts, such as 1e-5, as numbers, whole ones as integers."""
    if isinstance(value, str):
        try:
            number = float(value) if "e" in value.lower() and value[0] in "0123456789.-+" else None
        except ValueError:
            return value
        if number is None:
            return value
        return int(number) if number.is_integer() and abs(number) < 1e15 else number
    if isinstance(value, dict):
        return {k: as_number(v) for k, v in value.items()}
    return value
