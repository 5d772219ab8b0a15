"""TRL's private names: touched in one file, with the signatures it was written for."""

import inspect
import re
from pathlib import Path

import pytest
from trl import GRPOTrainer

from errata.training import compat

SOURCE = Path(compat.__file__).parents[1]


@pytest.mark.parametrize("name", sorted(compat.PRIVATE))
def test_signature(name):
    assert (
        tuple(inspect.signature(getattr(GRPOTrainer, name)).parameters)[: len(compat.PRIVATE[name])]
        == compat.PRIVATE[name]
    )


@pytest.mark.parametrize(
    "name",
    [
        "_metrics",
        "_step",
        "_buffered_inputs",
        "_entropy_bonus_enabled",
        "_standalone_tools",
        "_environment_pool",
        "_batch_environments",
        "_sync_tool_dicts",
        "_async_tool_dicts",
    ],
)
def test_private_attribute_is_still_set(name):
    assert re.search(rf"self\.{name}\b", inspect.getsource(GRPOTrainer))


def test_no_other_file_touches_a_private_name_of_trl():
    trls = {n for n in vars(GRPOTrainer) if n.startswith("_") and not n.startswith("__")} | {
        "_metrics",
        "_step",
        "_buffered_inputs",
    }
    ours = {"_VALID_DICT_FIELDS"}
    for path in SOURCE.rglob("*.py"):
        if path.name == "compat.py":
            continue
        text = path.read_text()
        if "trl" not in text and "training" not in str(path):
            continue
        used = set(re.findall(r"(?:self|trainer|_trainer)\.(_\w+)\b", text)) & trls - ours
        defined = set(re.findall(r"def (_\w+)\(", text))
        assert not used - defined, f"{path}: {used - defined}"
        assert not defined & trls, f"{path} overrides {defined & trls}"
        assert not re.search(r"from trl\S* import .*\b_\w+", text), path
