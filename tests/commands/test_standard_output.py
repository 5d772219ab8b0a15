"""What a command prints is its result alone, for the next program to read."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_a_result_is_json_beside_deepspeeds_messages():
    words = "eval house --task rulebook/sharpen --k 1 --problems 1 --max_completion_length 4"
    done = subprocess.run(
        [sys.executable, "-m", "errata", *words.split()],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # DeepSpeed says at its import that it found no GPU
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "avg@1" in json.loads(done.stdout)
    assert "get_accelerator" not in done.stderr
