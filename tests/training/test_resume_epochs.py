"""A run resumed after the data was gone through once is the same run.

Eight problems, two a step: an epoch is four steps, and a run goes past the end of two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tests.training.worlds import trainer, weights

ROOT = Path(__file__).parents[2]
STEPS = 11
CUTS = (4, 6, 8, 9, 10)
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

RUNS = {
    "grpo": ("grpo", {}),
    "distil, EMA teacher": ("distil", {"teacher": "ema", "teacher_rate": 0.3}),
    # A step learns from half of a generation batch: step 9 ends inside one.
    "inside a generation batch": (
        "sdpo",
        {"steps_per_generation": 2, "per_device_train_batch_size": 4, "teacher_rate": 0.3},
    ),
    "a generation batch used twice": ("grpo", {"num_iterations": 2}),
    "LoRA": ("distil", {"peft_config": LORA, "teacher": "ema", "teacher_rate": 0.3}),
    "replay": ("distil", {"replay_capacity": 6}),
    "drift's memory": ("drift", {"method_args": {"warmup_steps": 2}}),
    "logged every fifth step": ("grpo", {"logging_steps": 5}),
}


def make(folder, name, **more):
    method, changes = RUNS[name]
    changes = {**changes, **more}
    if "peft_config" in changes:
        changes["peft_config"] = LoraConfig(**changes["peft_config"])
    return trainer(folder, method, max_steps=STEPS, max_completion_length=6, **changes)


def logs(run, after):
    """What was logged after a step, without times."""
    return [
        {k: v for k, v in row.items() if not k.endswith(("time", "runtime", "per_second"))}
        for row in run.state.log_history
        if row["step"] > after and "train_runtime" not in row
    ]


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    """An uninterrupted run that left a checkpoint after each step, and what was sampled in each."""
    folder, kept = tmp_path_factory.mktemp("whole"), []
    run = make(
        folder, request.param, save_strategy="steps", save_steps=1, save_total_limit=20, keep=kept, rollouts_saved=8
    )
    run.train()
    return request.param, folder, run, kept


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_resumed_in_a_later_epoch_is_the_same_run(tmp_path, whole, cut):
    name, folder, uninterrupted, rows = whole
    kept = []
    resumed = make(tmp_path, name, keep=kept, rollouts_saved=8)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{cut}"))
    assert resumed.state.global_step == STEPS
    assert kept == [(stem, row) for stem, row in rows if row["step"] > cut]
    assert logs(resumed, cut) == logs(uninterrupted, cut)
    assert weights(resumed.model).keys() == weights(uninterrupted.model).keys()
    for a, b in zip(weights(resumed.model).values(), weights(uninterrupted.model).values(), strict=True):
        assert torch.equal(a, b)
    assert resumed.memory.state_dict() == uninterrupted.memory.state_dict()


def test_every_epoch_goes_through_all_problems_in_an_order_of_its_own(tmp_path):
    kept = []
    trainer(tmp_path, "grpo", max_steps=12, max_completion_length=4, keep=kept, rollouts_saved=2).train()
    seen = [row["problem_id"] for stem, row in kept if stem == "rollouts"]
    epochs = [seen[i : i + 8] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == [f"p{i}" for i in range(8)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_run_resumed_at_its_end_trains_no_further(tmp_path, whole):
    name, folder, uninterrupted, _ = whole
    kept = []
    resumed = make(tmp_path, name, keep=kept)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS}"))
    assert (resumed.state.global_step, kept) == (STEPS, [])
    for a, b in zip(weights(resumed.model).values(), weights(uninterrupted.model).values(), strict=True):
        assert torch.equal(a, b)


TWO = """
import json, sys, torch
torch.set_num_threads(1)
from tests.training.worlds import trainer
folder, out, cuts = sys.argv[1], sys.argv[2], sys.argv[3:]
def run(folder, resume, **more):
    kept = []
    t = trainer(folder, "drift", method_args={"warmup_steps": 2}, max_steps=12, max_completion_length=6, keep=kept,
                per_device_train_batch_size=2, gradient_accumulation_steps=2, rollouts_saved=8, **more)
    t.train(resume_from_checkpoint=resume)
    weights = {n: p.double().sum().item() for n, p in t.model.named_parameters()}
    return t, {"weights": weights, "memory": t.memory.state_dict(), "rows": kept}
t, whole = run(folder, None, save_strategy="steps", save_steps=1, save_total_limit=20)
found = {"whole": whole}
for cut in cuts:
    t, found[cut] = run(out, f"{folder}/checkpoint-{cut}")
if t.accelerator.is_main_process:
    open(f"{out}/found.json", "w").write(json.dumps(found))
t.accelerator.end_training()
"""


def test_on_two_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "run"), str(tmp_path / "out"), "4", "6", "10"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    whole = found.pop("whole")
    assert {*found} == {"4", "6", "10"}
    for cut, resumed in found.items():
        assert resumed["weights"] == whole["weights"]
        assert resumed["memory"] == whole["memory"]
        assert resumed["rows"] == [pair for pair in whole["rows"] if pair[1]["step"] > int(cut)]
