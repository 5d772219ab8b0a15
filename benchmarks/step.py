"""Time and memory of one optimizer step: errata's methods and TRL's GRPO and SDPO trainers, on the same batch.

    python benchmarks/step.py [--model house|qwen] [--only NAME ...] [--repeat 3] [--memory shipped|returned|kept]

Every variant runs in a process of its own. Its peak memory is the largest resident set that the operating system reports, less
what was resident after the policy was loaded. So a teacher's weights, gradients and the optimizer count. Completions are the
same fixed tokens for all, so generation takes no time. The time of real generation is measured in each process, and the
median is printed. Ratios are to TRL's GRPO trainer. DistIL's step is also compared with the least it needs: GRPO's step, and
one forward pass of the teacher on the same batches, with the logits of all completion tokens.

glibc returns a large tensor's memory to the operating system when it is freed; `errata train` tells it to keep the memory. With
--memory shipped each trainer runs as its own command line runs it. With returned or kept all run the same way.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "house": {"vocab": 200, "hidden": 128, "layers": 3, "heads": 4, "length": 64, "prompts": 16, "group": 8},
    # Qwen3's vocabulary and head shape on four layers: the logits dominate, as they do in the small real models.
    "qwen": {"vocab": 151_936, "hidden": 896, "layers": 4, "heads": 14, "length": 64, "prompts": 2, "group": 4},
}
VARIANTS = {
    "trl grpo": ("trl-grpo", {}),
    "trl sdpo sampled": ("trl-sdpo", {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}),
    "trl sdpo top-k 100": (
        "trl-sdpo",
        {
            "distillation_mode": "topk_logits",
            "distillation_topk": 100,
            "distillation_alpha": 0.5,
            "distillation_add_tail": True,
        },
    ),
    "trl sdpo full": ("trl-sdpo", {"distillation_mode": "full_logits", "distillation_alpha": 0.5}),
    "grpo": ("errata", {"method": "grpo"}),
    "sdpo": ("errata", {"method": "sdpo"}),
    "sdpo-science (top-k 100)": ("errata", {"method": "sdpo-science"}),
    "srpo": ("errata", {"method": "srpo"}),
    "distil": ("errata", {"method": "distil"}),
    "distil-science (top-k 100)": ("errata", {"method": "distil-science"}),
    "drift": ("errata", {"method": "drift", "method_args": {"warmup_steps": 0}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="qwen")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--repeat", type=int, default=3, help="processes per variant, interleaved; medians are printed")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process, after one warm-up step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("shipped", "returned", "kept"), default="shipped")
    parser.add_argument(
        "--ragged",
        action="store_true",
        help="completions of another length in every step, a quarter to 5/2 of the usual",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.memory == "kept" or (args.memory == "shipped" and VARIANTS[args.child][0] == "errata"):
            from errata.commands.allocator import keep_memory

            keep_memory()
        shape = SHAPES[args.model]
        print(json.dumps(measure(args.child, args.folder, shape, args.steps, args.threads, args.ragged)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _make_policy(SHAPES[args.model], folder)
        compare(args, folder)


def compare(args: argparse.Namespace, folder: str) -> None:
    """Run all variants in turn, several times, and print the medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
    for _ in range(args.repeat):
        for name in args.only:
            command = [
                sys.executable,
                __file__,
                "--model",
                args.model,
                "--steps",
                str(args.steps),
                "--threads",
                str(args.threads),
                "--memory",
                args.memory,
                "--folder",
                folder,
                *(["--ragged"] if args.ragged else []),
            ]
            done = subprocess.run([*command, "--child", name], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {found[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    median = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}
    base = median.get("trl grpo") or next(iter(median.values()))
    shape = SHAPES[args.model]
    tokens = shape["prompts"] * shape["group"] * shape["length"]
    print(
        f"{args.model}: {f'{tokens // 4} to {tokens * 5 // 2}' if args.ragged else tokens} completion tokens a step, "
        f"vocabulary {shape['vocab']:,}, {args.threads} threads, medians of {args.repeat}, memory {args.memory}"
    )
    print(f"{'':28}{'step s':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for name, row in median.items():
        print(
            f"{name:28}{row['seconds']:9.3f}{row['seconds'] / base['seconds']:8.2f}"
            f"{row['peak']:10.0f}{row['peak'] / base['peak']:8.2f}"
        )
    print(f"real generation of that batch would add {base['generation']:.2f} s to each")
    if {"distil", "grpo"} <= median.keys() and not args.ragged:
        forward = median["distil"]["teacher_forward"]
        floor = median["grpo"]["seconds"] + forward
        ratio = median["distil"]["seconds"] / floor
        print(f"distil / (grpo + one teacher forward, logits included, of {forward:.3f} s) = {ratio:.2f}")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, folder: str, shape: dict[str, Any], steps: int, threads: int, ragged: bool) -> dict[str, float]:
    """Seconds per step (the mean where they are ``ragged``) and peak memory in MB above what the process held with the
    policy loaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import PrinterCallback, TrainerCallback, logging

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    model, tokenizer, rows = _world(folder)
    ctypes.CDLL(None).malloc_trim(0)  # memory freed after loading is not the policy's
    before = resident()
    generator = torch.Generator().manual_seed(0)
    most = shape["length"] * 5 // 2 if ragged else shape["length"]
    ids = torch.randint(10, 100, (shape["prompts"] * shape["group"], most), generator=generator)
    real_generate = model.generate

    def generate(input_ids: Any, **kwargs: Any) -> Any:
        length = int(torch.randint(most // 10, most + 1, (), generator=generator)) if ragged else most
        return torch.cat([input_ids, ids[: len(input_ids), :length]], dim=1)

    model.generate = generate
    trainer = _trainer(name, shape | {"length": most}, model, tokenizer, rows, steps)
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *a: Any, **k: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *a: Any, **k: Any) -> None:
            times[-1] += time.perf_counter()

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    seen = _teacher_batches(model)
    trainer.train()
    last_batches = seen[len(seen) * steps // (steps + 1) :]  # the last step's
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    prompts = torch.randint(10, 100, (len(ids), 24))
    with torch.no_grad():
        started = time.perf_counter()
        real_generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=shape["length"],
            min_new_tokens=shape["length"],
            do_sample=True,
        )
        generation = time.perf_counter() - started
        forward = 0.0
        head = model.get_output_embeddings().weight
        for batch in last_batches:
            for _ in range(2):  # the second time counts
                started = time.perf_counter()
                hidden = model.base_model(**batch).last_hidden_state[:, -shape["length"] :].flatten(0, 1)
                for row in range(0, len(hidden), 128):  # the logits must be computed, whatever they are used for
                    torch.mm(hidden[row : row + 128], head.t())
                took = time.perf_counter() - started
            forward += took
    return {
        "seconds": (statistics.mean if ragged else statistics.median)(times[1:]),
        "peak": peak / 1e6,
        "generation": generation,
        "teacher_forward": forward,
    }


def _teacher_batches(model: Any) -> list[dict[str, Any]]:
    """What is given to the policy's class without gradient from now on: its teacher's batches."""
    import torch

    seen: list[dict[str, Any]] = []
    body = type(model.base_model)
    plain = body.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() and kwargs.get("input_ids") is not None:
            seen.append({"input_ids": kwargs["input_ids"], "attention_mask": kwargs.get("attention_mask")})
        return plain(self, *args, **kwargs)

    body.forward = forward
    return seen


def _make_policy(shape: dict[str, Any], folder: str) -> None:
    """A policy of that shape in a folder: TRL's teacher is loaded from where the policy came from."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from errata.house import HOUSE_PATH

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(HOUSE_PATH), padding_side="left")
    config = Qwen3Config(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=3 * shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=2,
        head_dim=64 if shape["hidden"] > 200 else 32,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _world(folder: str) -> tuple[Any, Any, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    rows = [
        {"problem_id": str(i), "prompt": [{"role": "user", "content": f"{i % 10}+3*4-2=?"}], "reference": "a" * 16}
        for i in range(64)
    ]
    return model, tokenizer, Dataset.from_list(rows)


def _trainer(name: str, shape: dict[str, Any], model: Any, tokenizer: Any, rows: Any, steps: int) -> Any:
    kind, options = VARIANTS[name]
    batch = shape["prompts"] * shape["group"]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "num_generations": shape["group"],
        "max_completion_length": shape["length"],
        "max_steps": steps + 1,
        "learning_rate": 1e-6,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
    }

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        return [float(i % 2 == 0) for i in range(len(completions))]  # half of every group succeeds

    if kind == "trl-grpo":
        from trl import GRPOConfig, GRPOTrainer

        return GRPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=GRPOConfig(**common),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    if kind == "trl-sdpo":
        from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

        arguments = SDPOConfig(**common, **options)
        return SDPOTrainer(
            model=model, reward_funcs=[reward], args=arguments, train_dataset=rows, processing_class=tokenizer
        )
    from errata import methods
    from errata.recipe.config import ErrataConfig
    from errata.training.trainer import ErrataTrainer

    arguments = ErrataConfig(**common, rollouts_saved=0, context_template="sdpo", **options.get("config", {}))
    method = methods.get(options["method"], **options.get("method_args", {}))
    return ErrataTrainer(model, [reward], arguments, method=method, train_dataset=rows, processing_class=tokenizer)


if __name__ == "__main__":
    main()
