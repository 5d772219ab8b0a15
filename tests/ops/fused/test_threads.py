"""Threads that share the cores: order of results, errors, and PyTorch's settings before, within and after."""

import threading

import pytest
import torch

from errata.ops.fused.threads import run_in_threads, threads_for


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "each"), [(2, 2), (3, 1), (4, 1), (6, 1)])
def test_threads_share_the_cores(threads, each):
    weight = torch.ones(3, requires_grad=True)
    together = threading.Barrier(threads, timeout=30)  # broken unless all are running at once

    def work(thread):
        together.wait()
        return thread, torch.get_num_threads(), (weight * thread).requires_grad

    assert run_in_threads(work, threads) == [(thread, each, False) for thread in range(threads)]
    assert torch.get_num_threads() == 4


def test_one_thread_is_the_caller_itself():
    assert run_in_threads(lambda thread: (thread, threading.current_thread(), torch.get_num_threads()), 1) == [
        (0, threading.current_thread(), 4)
    ]


def test_an_error_is_raised_and_the_setting_restored():
    def work(thread):
        if thread == 1:
            raise ValueError("thread 1")

    with pytest.raises(ValueError, match="thread 1"):
        run_in_threads(work, 3)
    assert torch.get_num_threads() == 4


def test_a_gpu_needs_one_thread():
    assert threads_for(torch.device("cpu")) == 4
    assert threads_for(torch.device("cuda")) == 1
    torch.set_num_threads(64)
    assert threads_for(torch.device("cpu")) == 16
