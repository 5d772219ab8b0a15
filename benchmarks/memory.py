"""The estimate of ``errata plan`` against measured peaks of one optimizer step on a CPU.

    python benchmarks/memory.py [--model house qwen] [--only grpo sdpo distil] [--memory returned|kept]

Each step runs as benchmarks/step.py runs it, in a process of its own, and its peak is the largest resident set less what the
process held with the policy loaded. So the weights are not part of either number. The estimate is of tensors alone; a process
also imports libraries after the policy was loaded, and its allocator rounds. How much that is shows in the row ``nothing``: a
step of the smallest policy on the smallest batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import step as steps

TILE = 312 << 20
"""The score op's tile on a CPU."""
TEACHER = {"grpo": "none", "sdpo": "ema", "srpo": "ema", "distil": "ema", "drift": "ema"}
PROMPT, TEACHER_PROMPT = 20, 80
"""Tokens of step.py's prompts: the question, and the question with a shown answer and the template around it."""
steps.SHAPES["nothing"] = {
    **{"vocab": 200, "hidden": 32, "layers": 1, "heads": 4},
    **{"length": 8, "prompts": 2, "group": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", choices=list(steps.SHAPES), default=["nothing", "house", "qwen"])
    parser.add_argument("--only", nargs="*", choices=list(TEACHER), default=["grpo", "sdpo", "distil"])
    parser.add_argument("--memory", choices=("returned", "kept"), default="returned")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.memory == "kept":
            from errata.commands.allocator import keep_memory

            keep_memory()
        print(json.dumps(steps.measure(args.child, args.folder, steps.SHAPES[args.model[0]], 2, 1, False)))
        return
    print(f"{'':10}{'':10}{'estimate MB':>12}{'measured':>10}{'ratio':>7}")
    for model in args.model:
        for name in args.only:
            expected = estimated(steps.SHAPES[model], name) / 1e6
            found = measured(model, name, args.memory) / 1e6
            print(f"{model:10}{name:10}{expected:12.0f}{found:10.0f}{expected / found:7.2f}", flush=True)


def estimated(shape: dict[str, Any], name: str) -> float:
    """Bytes of the step's peak beside the policy's weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from errata.commands.plan import shape_of
    from errata.recipe.memory import Load, estimate

    with tempfile.TemporaryDirectory() as folder:
        steps._make_policy(shape, folder)
        import torch

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    rows = shape["prompts"] * shape["group"]
    load = Load(
        rows=rows,
        generation_rows=rows,
        prompt=PROMPT,
        completion=shape["length"],
        teacher_prompt=TEACHER_PROMPT,
        checkpointing=False,
        tile=TILE,
        teacher=TEACHER[name],
    )
    found = estimate(shape_of(model), load)
    return found.peak - found.parts["weights"]


def measured(model: str, name: str, memory: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        steps._make_policy(steps.SHAPES[model], folder)
        command = [sys.executable, __file__, "--model", model, "--memory", memory, "--folder", folder, "--child", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model} {name}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak"]) * 1e6


if __name__ == "__main__":
    main()
