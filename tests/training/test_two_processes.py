"""Two processes, groups that lie across both: what is decided and remembered is the same everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, sys, torch
torch.set_num_threads(1)
from tests.training.worlds import trainer, weights
folder, method = sys.argv[1], sys.argv[2]
args = {"warmup_steps": 1} if method == "drift" else {}
def second_half(completions, **kwargs):  # the second process has no failures
    return [float(os.environ["RANK"] == "1")] * len(completions)
critic = {"critic": "policy", "critic_max_tokens": 4, "verifiers": [second_half]} if method == "sdpo" else {}
# Two rollouts on each process, groups of four: every group lies across both.
t = trainer(folder, method, method_args=args, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4,
            save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4, eval_rows=3, **critic)
t.train()
rank = t.accelerator.process_index
out = {"experience": t.memory.state_dict(), "weights": float(sum(p.abs().sum() for p in weights(t.model).values())),
       "indices": [r.index for r in t.generation.rollouts], "problems": [r.problem_id for r in t.generation.rollouts],
       "failed": [r.reward < 1 for r in t.generation.rollouts],
       "criticised": ["critique_tokens" in r.verdict.info for r in t.generation.rollouts],
       "critic": [log["critic/tokens"] for log in t.state.log_history if "critic/tokens" in log],
       "eval": [r.index for r in t.evaluator.last_rollouts],
       "teacher": 0.0 if t.teacher is None else float(sum(p.abs().sum() for p in weights(t.teacher.separate).values())),
       "loss": [log["loss"] for log in t.state.log_history if "loss" in log]}
open(f"{folder}/rank{rank}.json", "w").write(json.dumps(out))
t.accelerator.end_training()
"""


@pytest.mark.parametrize("method", ["distil", "drift", "sdpo", "srpo"])
def test_two_processes_agree(tmp_path, method):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
        str(tmp_path),
        method,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert one["experience"] == two["experience"]
    assert one["weights"] == two["weights"]
    assert one["teacher"] == two["teacher"]
    # Processes hold consecutive slices of the generation batch, in the order of its groups.
    assert one["indices"] + two["indices"] == list(range(8))
    assert len(set((one["problems"] + two["problems"])[:4])) == 1
    assert one["eval"] == two["eval"] == list(range(12))
    saved = json.loads((tmp_path / "checkpoint-4" / "errata_state" / "state.json").read_text())
    assert saved["memory"] == one["experience"]
    assert all(torch.isfinite(torch.tensor(one["loss"])))
    if method == "sdpo":  # each process criticises its own failures, and one without any goes along
        assert one["failed"] == one["criticised"] == [True] * len(one["failed"])
        assert two["failed"] == two["criticised"] == [False] * len(two["failed"])
        assert len(one["critic"]) == 4
        assert one["critic"] == two["critic"]
