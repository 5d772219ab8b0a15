"""How tokens are divided into tiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.ops.fused import workspace


@given(n=st.integers(1, 5000), first=st.integers(1, 600), most=st.integers(1, 600))
def test_tiles_are_few_and_alike(n, first, most):
    heights = workspace.plan(n, first, most)
    assert sum(heights) == n
    assert min(heights) > 0
    assert heights[0] <= first
    assert max(heights[1:], default=0) <= most
    if n > first:
        first, most = first // 16 * 16 or first, most // 16 * 16 or most
        assert len(heights) == 1 + -(-(n - first) // most)  # as few as can be


@pytest.mark.parametrize(
    ("n", "heights"),
    [
        (512, [512]),  # one tile where possible
        (1024, [544, 240, 240]),  # 512 and two of 256 would be as even, and slower
        (2048, [512, 272, 240, 272, 240, 272, 240]),
        (600, [400, 200]),
    ],
)
def test_heights_are_multiples_of_16_but_not_of_128(n, heights):
    assert workspace.plan(n, 552, 276) == heights


def test_no_tile_is_added_to_avoid_multiples_of_128():
    assert workspace.plan(2048, 538, 269) == [528, 256, 256, 256, 256, 256, 240]  # 272 would not fit
