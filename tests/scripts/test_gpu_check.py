"""scripts/gpu_check.py: its stages, its JSON and its table, and that it stops by itself."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=900)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so():
    done = run()
    assert done.returncode == 2
    assert "no CUDA device; --device cpu rehearses" in done.stderr


def test_it_ends_a_stage_at_its_deadline_and_keeps_what_it_has(check, tmp_path, monkeypatch):
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(check, "__file__", str(script))
    assert check.child("device", "cpu", 0.5) == {"failed": "ended after 0 s"}


def test_a_stage_that_fails_is_told_with_its_error(check, tmp_path, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("raise MemoryError('no room')\n")
    monkeypatch.setattr(check, "__file__", str(script))
    assert "MemoryError: no room" in check.child("step grpo", "cpu", 30)["failed"]


def test_the_table_compares_with_the_goals(check):
    stages = {
        "device": {"name": "A GPU", "torch": "2.13", "matmul_bfloat16_tflops": 600.0},
        "tests": {"passed": 20, "skipped": 1, "failures": ["test_scores"]},
        "scores fused": {"seconds": 0.1, "peak_gb": 6.2, "tflops": 450.0},
        "scores trl": {"seconds": 0.2, "peak_gb": 9.0, "tflops": 225.0},
        "scores liger": {"skipped": "liger-kernel is not installed"},
        "step grpo": {"failed": "ended after 12 s"},
    }
    lines = check.table({"device": "cuda", "stages": stages})
    assert lines[:3] == [
        "A GPU, torch 2.13",
        "best square product: 600 TFLOP/s",
        "tests: 20 passed, 1 skipped, failed: test_scores",
    ]
    assert "| scores fused | 0.1 | 6.20 | 75% |" in lines
    assert "| scores liger | liger-kernel is not installed | | |" in lines
    assert "| step grpo | ended after 12 s | | |" in lines
    assert lines[-2:] == [
        "fused loss: 75% of the matmul rate, goal 70%",
        "fused loss: 0.50 of the time of TRL's kernels, goal at most 1",
    ]


@pytest.mark.slow
def test_the_rehearsal_on_a_cpu(tmp_path):
    """Every stage runs here with tiny sizes, the gpu tests among them; the exact kernels agree."""
    out = tmp_path / "found.json"
    done = run("--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    stages = json.loads(out.read_text())["stages"]
    assert stages["tests"]["failures"] == []
    assert stages["tests"]["passed"] >= 20
    losses = [stages[f"scores {name}"]["loss"] for name in ("fused", "naive", "trl")]
    assert max(losses) - min(losses) < 1e-4 * abs(losses[0])
    for name in ("grpo", "distil", "trl grpo"):
        assert stages[f"step {name}"]["seconds"] > 0
    assert "| step distil |" in done.stdout
