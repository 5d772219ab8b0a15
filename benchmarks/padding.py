"""Tokens per second and peak memory of a step on long ragged answers: errata without padding, with it, and TRL.

    python benchmarks/padding.py [--lengths 256 512] [--parts 1 2 4 8] [--layers 4] [--hidden 256] [--threads 1]
                                 [--only NAME ...] [--gb 8]

A batch is four answers to one problem, of T, T/2, T/4 and T/8 tokens (``--parts``); the model is Qwen3-shaped with the full
vocabulary. All variants learn from the same tokens; generation is left out. Each is measured in a process of its own, over one
step. Tokens are those of the answers; seconds are of CPU time, which other jobs on the machine do not change. Peak memory is
above what the process held with the policy loaded. A variant that needs more than --gb for its logits is left out. No GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import step

VARIANTS = {
    "TRL grpo": ("trl-grpo", {}),
    "grpo, padded": ("errata", {"method": "grpo", "config": {"padding_free": False}}),
    "grpo": ("errata", {"method": "grpo"}),
    "distil, padded": ("errata", {"method": "distil", "config": {"padding_free": False}}),
    "distil": ("errata", {"method": "distil"}),
}
step.VARIANTS.update(VARIANTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument(
        "--parts", type=int, nargs="*", default=[1, 2, 4, 8], help="T is divided by these: one answer each"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--gb", type=float, default=8)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import trl  # noqa: F401  each process is forked from this one, which has imported everything

    import errata.training.trainer  # noqa: F401

    torch.set_num_threads(args.threads)
    shape = {"vocab": 151_936, "hidden": args.hidden, "layers": args.layers, "heads": args.hidden // 64}
    shape |= {"prompts": 1, "group": len(args.parts)}
    print(
        f"{args.layers} layers, hidden {args.hidden}, vocabulary {shape['vocab']:,}, {args.threads} thread(s), "
        f"answers of {', '.join(f'T/{part}' for part in args.parts)} tokens"
    )
    print(f"{'T':>5}  {'':16}{'tokens/s':>10}{'peak MB':>10}", flush=True)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        with fork.Pool(1) as pool:
            pool.apply(step._make_policy, (shape, folder))
        for length in args.lengths:
            for name in args.only:
                # TRL holds the logits of the padded batch, their log-softmax and its gradient.
                if name.startswith("TRL") and 3 * 4 * len(args.parts) * length * shape["vocab"] > args.gb * 1e9:
                    print(f"{length:5}  {name:16}{'needs more memory':>20}", flush=True)
                    continue
                with fork.Pool(1) as pool:
                    rate, peak = pool.apply(measure, (name, folder, shape | {"length": length}, args.parts))
                print(f"{length:5}  {name:16}{rate:10.1f}{peak:10.0f}", flush=True)


def measure(name: str, folder: str, shape: dict[str, Any], parts: Sequence[int]) -> tuple[float, float]:
    """Answers' tokens per second of CPU time in one step, and peak memory in MB."""
    import torch
    from transformers import PrinterCallback, TrainerCallback, logging

    logging.set_verbosity_error()
    model, tokenizer, rows = step._world(folder)
    ctypes.CDLL(None).malloc_trim(0)  # memory freed after loading is not the policy's
    before = step.resident()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 100, (len(parts), shape["length"]), generator=generator)
    for row, part in enumerate(parts):
        ids[row, shape["length"] // part - 1] = tokenizer.eos_token_id  # what follows is no part of the answer
    model.generate = lambda input_ids, **kwargs: torch.cat([input_ids, ids], dim=1)
    trainer = step._trainer(name, shape, model, tokenizer, rows, 0)
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *a: Any, **k: Any) -> None:
            seconds.append(-time.process_time())

        def on_step_end(self, *a: Any, **k: Any) -> None:
            seconds[-1] += time.process_time()

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    tokens = sum(shape["length"] // part for part in parts)
    return tokens / seconds[0], peak / 1e6


if __name__ == "__main__":
    main()
