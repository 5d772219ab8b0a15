"""Work side by side: order, errors, and the state of threads before, within and after."""

import threading

import pytest
import torch

from errata.ops.fused.threads import lanes_on, side_by_side


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("lanes", "each"), [(2, 2), (3, 1), (4, 1), (6, 1)])
def test_lanes_share_the_cores(lanes, each):
    weight = torch.ones(3, requires_grad=True)
    together = threading.Barrier(lanes, timeout=30)  # broken unless all are at work at once

    def work(lane):
        together.wait()
        return lane, torch.get_num_threads(), (weight * lane).requires_grad

    assert side_by_side(work, lanes) == [(lane, each, False) for lane in range(lanes)]
    assert torch.get_num_threads() == 4


def test_one_lane_is_the_caller_itself():
    assert side_by_side(lambda lane: (lane, threading.current_thread(), torch.get_num_threads()), 1) == [
        (0, threading.current_thread(), 4)
    ]


def test_an_error_is_raised_and_the_cores_given_back():
    def work(lane):
        if lane == 1:
            raise ValueError("lane 1")

    with pytest.raises(ValueError, match="lane 1"):
        side_by_side(work, 3)
    assert torch.get_num_threads() == 4


def test_lanes_are_for_cpus():
    assert lanes_on(torch.device("cpu")) == 4
    assert lanes_on(torch.device("cuda")) == 1
    torch.set_num_threads(64)
    assert lanes_on(torch.device("cpu")) == 16
