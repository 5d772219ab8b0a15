"""Two processes learn what one learns, whatever their rollouts are: ragged, empty, cut off, without teachers on one process.

The runs are those of ``distributed_worker``, all in one start of each.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.distributed_worker import CASES, ROLLOUTS, STEPS, main, write_expert

ROOT = Path(__file__).parents[2]
TIMING = ("train_", "step_time")
# Of micro-batches, whose make-up depends on the processes, or of the first process alone.
PER_PROCESS = ("teacher/padding", "context/cut", "context/dropped")
PER_MICRO_BATCH = ("entropy", "teacher/", "clip_ratio/")


def torchrun(folder, *command, processes=2, timeout=500, **environment):
    """The module run by two processes; its stderr."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of the runs of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    write_expert(one)
    write_expert(two)
    torchrun(two, "tests.training.distributed_worker", str(two))
    main(one, [])
    return one, two


def read(folder, name, rank=0):
    return json.loads((folder / f"{name}.{rank}.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(runs, name):
    one, two = runs
    alone, (first, second) = read(one, name), (read(two, name, rank) for rank in (0, 1))
    assert len(alone["logs"]) == len(first["logs"]) == STEPS
    for step, (a, b) in enumerate(zip(alone["logs"], first["logs"], strict=True)):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5, abs=1e-6), step
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5, abs=1e-6), step
        ignored = PER_PROCESS + (() if CASES[name].get("micro_batches", 1) == 1 else PER_MICRO_BATCH)
        kept = {k: v for k, v in a.items() if not k.startswith(ignored + TIMING)}
        assert {k: v for k, v in b.items() if not k.startswith(ignored + TIMING)} == pytest.approx(
            kept, rel=1e-4, abs=1e-5
        )
    here, there = (torch.load(folder / f"{name}.pt") for folder in runs)
    for parameter, value in here.items():
        torch.testing.assert_close(
            there[parameter], value, rtol=1e-5, atol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}"
        )
    assert first["memory"] == second["memory"] == alone["memory"]
    # Processes hold consecutive slices of the generation batch, in the order of its groups.
    for a, b in zip(first["batches"], second["batches"], strict=True):
        assert a["indices"] + b["indices"] == list(range(ROLLOUTS))


def test_the_rollouts_are_ragged(runs):
    first, second = (read(runs[1], "distil", rank)["batches"] for rank in (0, 1))
    pairs = list(zip(first, second, strict=True))
    assert all(a["longest"] != b["longest"] for a, b in pairs)
    assert [(a["has_teacher"] > 0, b["has_teacher"] > 0) for a, b in pairs[:2]] == [(True, False), (False, True)]
    assert pairs[2][1]["tokens"] == 0  # all of the second process's are cut off
    assert any(a["has_teacher"] != b["has_teacher"] and a["has_teacher"] * b["has_teacher"] for a, b in pairs)


def test_without_use_cpu_two_processes_are_one_run(tmp_path):
    out = torchrun(
        tmp_path, "tests.training.distributed_worker", "config", str(tmp_path), CUDA_VISIBLE_DEVICES="", timeout=200
    )
    # Two processes write to one stream: their lines may share one.
    assert sorted(re.findall(r"\d of \d on \w+?(?=\d of|\s|$)", out)) == ["0 of 2 on cpu", "1 of 2 on cpu"]
