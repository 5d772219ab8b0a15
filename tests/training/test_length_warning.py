"""The warning for answers that get shorter without getting nearer to the teacher."""

import pytest

from errata.training.length_warning import length_warning

SHORTER = [50.0] * 10 + [20.0] * 10


def test_shorter_without_a_falling_divergence_is_reported():
    message = length_warning(SHORTER, [0.04] * 10 + [0.09] * 10)
    assert message == (
        "answers fell from 50 to 20 tokens while the divergence from the teacher went from 0.040 to 0.090 a token: "
        "shorter, not better (docs/length.md)"
    )


@pytest.mark.parametrize(
    ("lengths", "divergences"),
    [
        (SHORTER, [0.04] * 10 + [0.02] * 10),  # it learns
        ([50.0] * 10 + [40.0] * 10, [0.04] * 20),  # a fifth shorter
        ([20.0] * 10 + [50.0] * 10, [0.04] * 20),  # longer
        (SHORTER[:19], [0.04] * 19),  # too early to say
        ([50.0] * 19 + [2.0], [0.04] * 20),  # one odd step
    ],
)
def test_otherwise_nothing_is_said(lengths, divergences):
    assert length_warning(lengths, divergences) is None


def test_the_edges_of_a_quarter_and_a_tenth():
    assert length_warning([100.0, 75.0], [1.0, 1.0], window=1) is None
    assert length_warning([100.0, 74.0], [1.0, 0.91], window=1) is not None
    assert length_warning([100.0, 74.0], [1.0, 0.9], window=1) is None


@pytest.mark.parametrize(("arguments", "name"), [(([1.0], [], 1), "divergences"), (([], [], 0), "window")])
def test_errors_name_the_argument(arguments, name):
    lengths, divergences, window = arguments
    with pytest.raises(ValueError, match=name):
        length_warning(lengths, divergences, window=window)
