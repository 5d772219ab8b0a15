"""A preflight and each guard on two processes: both decide the same, and neither waits for the other."""

import json

import pytest
from tests.training.guard_worker import POLICIES, write_recipe
from tests.training.test_distributed import torchrun

pytestmark = pytest.mark.slow

ACTS = {"freeze", "reward", "best", "stop"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder, and what each process saw and decided, by policy; all from one start."""
    folder = tmp_path_factory.mktemp("guard")
    write_recipe(folder)
    torchrun(folder, "tests.training.guard_worker", str(folder), timeout=300)
    return folder, *(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_both_processes_decide_the_same(runs, policy):
    folder, first, second = runs
    assert first[policy] == second[policy]
    one = first[policy]
    assert one["status"] == 0
    assert len(one["preflight"]) == 1
    # The accuracy fell by more than a half at steps 2 and 4.
    begun, *later = [log["eval_avg@4"] for log in one["logs"] if "eval_avg@4" in log]
    assert begun > 0.5
    assert max(later[:2]) < begun / 2
    assert one["acted"] == ({"step": 4, "sign": "accuracy"} if policy in ACTS else None)
    assert one["steps"] == (4 if policy in ("best", "stop") else 8)
    assert one["teacher"] == [policy == "freeze", 4 if policy in ("freeze", "best", "stop") else 8]
    assert one["reward_only"] == (policy == "reward")
    assert (later[-1] == begun) == (policy == "best")
    # One process writes, once.
    file = folder / policy / "guard.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if policy != "none" else []
    assert [r["did"] for r in rows if r["did"] != "warn"] == {"best": ["best", "best"]}.get(
        policy, [policy] * (policy in ACTS)
    )


def test_both_processes_find_the_same_before_training(runs):
    """In every context, a critique by the policy too, which is sampled."""
    _, first, second = runs
    assert first["preflight"] == second["preflight"]
    (found,) = first["preflight"]["preflight"]
    assert "critique" in found
