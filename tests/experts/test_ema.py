"""An average in bfloat16: rounding to the nearest stalls, stochastic rounding does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.experts import ema
from errata.experts.ema import ema_update, stochastic_round, update_generator

CPU = torch.device("cpu")


def test_rounding_to_the_nearest_stalls_and_stochastic_rounding_does_not():
    """300 steps at rate 0.01 toward weights 5 % away, which is 13 steps of bfloat16: a float32 average covers 95 % of it."""
    torch.manual_seed(0)
    start = torch.randn(4000)
    student = start * 1.05
    exact, plain, ours = start.clone(), start.bfloat16(), start.bfloat16()
    for update in range(300):
        exact.lerp_(student, 0.01)
        plain.lerp_(student.bfloat16(), 0.01)
        ema_update(ours, student, 0.01, update_generator(0, update, CPU))
    way = student - start
    gone = {
        name: float((x.float() - start) @ way / (way @ way))
        for name, x in {"exact": exact, "plain": plain, "ours": ours}.items()
    }
    assert gone["exact"] == pytest.approx(1 - 0.99**300, abs=1e-3)
    assert abs(gone["plain"]) < 0.01
    assert gone["ours"] == pytest.approx(gone["exact"], abs=0.01)
    # Single weights stray by about a step of bfloat16, not by a random walk: the average pulls back.
    assert ((ours.float() - exact).abs() <= 4 * exact.abs() / 128).all()


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100),
    st.integers(0, 99),
)
def test_a_value_becomes_one_of_its_two_neighbours(value, seed):
    exact = torch.full((64,), value, dtype=torch.float32)
    rounded = stochastic_round(exact, torch.Generator().manual_seed(seed))
    assert rounded.dtype == torch.bfloat16
    toward_zero = (exact.view(torch.int32) & -65536).view(torch.float32)
    away = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    hit = rounded.float()
    assert ((hit == toward_zero) | (hit == away)).all()
    if torch.equal(toward_zero, exact):  # representable: untouched
        assert torch.equal(hit, exact)


def test_its_mean_is_the_value():
    """1 + 3/1024 lies 3/8 of the way between bfloat16's 1 and 1 + 1/128; so does its negative."""
    n = 40_000
    values = torch.tensor([1 + 3 / 1024, -1 - 3 / 1024]).repeat_interleave(n)
    rounded = stochastic_round(values, torch.Generator().manual_seed(1)).float().view(2, n)
    up = (rounded.abs() > 1).float().mean(1)
    torch.testing.assert_close(up, torch.tensor([0.375, 0.375]), atol=4 * (0.375 * 0.625 / n) ** 0.5, rtol=0)


def test_the_random_numbers_are_of_the_seed_and_the_update():
    def one(seed, update):
        return stochastic_round(torch.full((256,), 1.003), update_generator(seed, update, CPU)).tolist()

    assert one(1, 2) == one(1, 2)
    assert len({tuple(one(*which)) for which in ((1, 2), (1, 3), (2, 2), (12, 1))}) == 4


def test_other_types_are_averaged_as_they_are():
    for dtype in (torch.float32, torch.float64):
        teacher = torch.tensor([1.0, 2.0], dtype=dtype)
        ema_update(teacher, torch.tensor([3.0, 2.0]).bfloat16(), 0.25, update_generator(0, 0, CPU))
        assert teacher.tolist() == [1.5, 2.0]


def test_a_large_weight_is_updated_in_pieces(monkeypatch):
    monkeypatch.setattr(ema, "CHUNK", 5)
    teacher, student = torch.zeros(3, 4).bfloat16(), torch.full((3, 4), 2.0)
    ema_update(teacher, student, 0.5, update_generator(0, 0, CPU))
    assert torch.equal(teacher, torch.ones(3, 4).bfloat16())  # representable, so exact
