"""The list of mistakes fits today's sources, and each mistake is noticed."""

import pytest
from tests.oracle.mutations import MUTATIONS, SOURCES, caught_by, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_line_is_there(mutation):
    text = (SOURCES / mutation.file).read_text()
    compile(mutated(mutation, text), mutation.file, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_it_is_noticed(mutation):
    assert caught_by(mutation) is not None
