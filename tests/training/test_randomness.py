import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from errata.training.randomness import EpochSampler, RandomState


@given(problems=st.integers(2, 12), seed=st.integers(0, 99), epoch=st.integers(0, 4))
def test_an_epochs_order_is_that_of_a_process_which_saw_all_epochs_before(problems, seed, epoch):
    settings = {"mini_repeat_count": 2, "batch_size": 2, "repeat_count": 1, "seed": seed}
    uninterrupted = RepeatSampler(range(problems), **settings)
    orders = [list(uninterrupted) for _ in range(epoch + 1)]
    resumed = EpochSampler(range(problems), **settings)
    resumed.epoch = epoch
    assert list(resumed) == orders[-1]
    assert list(resumed) == orders[-1]


def test_all_generators_draw_again_what_they_drew():
    def draws():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    state = RandomState.now()
    first = draws()
    assert draws() != first
    state.restore()
    assert draws() == first
