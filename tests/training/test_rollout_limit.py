"""rollouts.jsonl stays below its limit, is spread over the whole run, and is complete where it fits."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerState

from errata.commands.progress import HISTORY, Progress
from errata.reports.rundir import RunDirectory
from errata.training.rollout_log import within_limit


def steps_written(file, limit_mb, steps, row_bytes):
    found = []
    with file.open("wb", buffering=0) as out:
        for step in range(1, steps + 1):
            if within_limit(file, limit_mb, step, steps):
                out.write(bytes(row_bytes))
                found.append(step)
    return found


def test_every_step_is_written_while_it_fits(tmp_path):
    assert not (tmp_path / "none").exists()
    assert within_limit(tmp_path / "none", 1e-9, 1, 10)
    assert steps_written(tmp_path / "r", 0.001, 10, 100) == [*range(1, 11)]


def test_a_log_three_times_the_limit_has_every_third_step(tmp_path):
    assert steps_written(tmp_path / "r", 0.001, 30, 100) == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(1, 5000), steps=st.integers(1, 60), row=st.integers(1, 500))
def test_the_limit_holds_and_no_stretch_is_left_out(tmp_path_factory, limit, steps, row):
    file = tmp_path_factory.mktemp("r") / "r"
    found = steps_written(file, limit / 1e6, steps, row)
    assert file.stat().st_size <= limit + row
    gap = max(row * steps / limit, 1) + 1
    assert all(b - a <= gap for a, b in pairwise(found))
    assert found[0] == 1


@pytest.mark.parametrize("is_main", [True, False])
def test_the_history_of_logs_in_memory_stays_short(tmp_path, is_main):
    state = TrainerState(max_steps=1000, is_world_process_zero=is_main)
    run = RunDirectory(tmp_path)
    progress = Progress(run, 1)
    for step in range(1, 3 * HISTORY + 1):
        state.global_step = step
        state.log_history.append(
            {"step": step, "reward": 0.5, "loss": 1.0} if step != 150 else {"step": step, "eval_a": 1}
        )
        progress.on_log(None, state, None, {"loss": 0.0})
    assert [log["step"] for log in state.log_history] == [
        *range(1, HISTORY + 1),
        150,
        *range(2 * HISTORY + 1, 3 * HISTORY + 1),
    ]
    assert len(run.read("metrics")) == (3 * HISTORY if is_main else 0)
