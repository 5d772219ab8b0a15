"""What sampling and learning cost on a CPU, by engine and number format, and which sampling settings serve a small model.

    python benchmarks/sampling.py speed [--prompts 4] [--group 4] [--tokens 32] [--rounds 3] [--threads 1]
    python benchmarks/sampling.py speed --only vllm --server http://127.0.0.1:8000   # a vLLM server that serves the same folder
    python benchmarks/sampling.py settings [--problems 16] [--group 4]

`speed`: tokens per second of transformers' `generate` (what TRL calls), of transformers' continuous batching and of a vLLM
server, each of the same prompts, every completion exactly --tokens long; and the seconds of one forward and backward pass of
those sequences with the weights in float32 and under bfloat16 autocast (`bf16: true`). The variants take turns, and medians over
the rounds are printed. CPU seconds of this process stand beside the wall clock, since other work may share the machine; a
server's are not seen.

`settings`: share of attempts right, share cut at the limit, mean tokens, and how many of a group's attempts are different, for
the plain model at several temperatures and truncations. A reward teaches nothing where no attempt is right or all are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sampling.json"
SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 0.7},
    {"temperature": 0.5},
)
VARIANTS = (
    "generate float32",
    "generate bfloat16",
    "continuous float32",
    "continuous bfloat16",
    "learn float32",
    "learn bfloat16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "settings"))
    parser.add_argument("--task", default="instructions/length")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", "--problems", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", nargs="*", default=list(VARIANTS), help="vllm is measured only where it is named here"
    )
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from errata import tasks
    from errata.models.smollm2 import smollm2_path

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    path = smollm2_path(args.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    rows = tasks.load(args.task).select(range(args.prompts))
    kinds = {v.rpartition(" ")[2] for v in args.only} - {"vllm"} if args.what == "speed" else {"float32"}
    models = {kind: AutoModelForCausalLM.from_pretrained(path, dtype=kind).eval() for kind in sorted(kinds)}
    found = (
        speed(args, path, tokenizer, rows, models) if args.what == "speed" else settings(args, tokenizer, rows, models)
    )
    records = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    keys = {(r["what"], r["variant"], r["threads"]) for r in found}
    records = [r for r in records if (r["what"], r["variant"], r["threads"]) not in keys] + found
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def speed(args: Any, path: str, tokenizer: Any, rows: Any, models: dict[str, Any]) -> list[dict[str, Any]]:
    prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in rows["prompt"]]
    prompts = [ids for ids in prompts for _ in range(args.group)]
    runs = {name: _variant(name, args, path, tokenizer, prompts, models) for name in args.only}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if round_:  # the first warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    tokens = len(prompts) * args.tokens
    print(f"{len(prompts)} completions of {args.tokens} tokens, {args.threads} threads, medians of {args.rounds}")
    print(f"{'':24}{'wall s':>9}{'CPU s':>9}{'tokens/s (CPU)':>16}")
    found = []
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:24}{wall:9.2f}{cpu:9.2f}{tokens / cpu:16.1f}")
        found.append({"what": "speed", "variant": name, "threads": args.threads, "completions": len(prompts)})
        found[-1] |= {"tokens": args.tokens, "wall_s": wall, "cpu_s": cpu, "all": pairs}
    return found


def _variant(
    name: str, args: Any, path: str, tokenizer: Any, prompts: list[list[int]], models: dict[str, Any]
) -> Callable[[], Any]:
    """The work to be timed."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    if name == "vllm":
        sampling = {"temperature": 1.0, "max_tokens": args.tokens, "min_tokens": args.tokens, "n": args.group}
        body = json.dumps({"model": path, "prompt": prompts[:: args.group], **sampling}).encode()
        request = urllib.request.Request(f"{args.server}/v1/completions", body, {"Content-Type": "application/json"})
        return lambda: urllib.request.urlopen(request).read()
    engine, _, kind = name.partition(" ")
    model = models[kind] if engine != "learn" else models["float32"]
    limits = {"do_sample": True, "max_new_tokens": args.tokens, "min_new_tokens": args.tokens}
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    if engine == "generate":
        return lambda: model.generate(**padded, **limits)
    if engine == "continuous":
        ids = {"eos_token_id": -1, "pad_token_id": tokenizer.pad_token_id}  # no end: each is as long as allowed
        config = GenerationConfig(do_sample=True, max_new_tokens=args.tokens, **ids)
        # Left to itself its cache fills the machine's memory. A block holds the 256 tokens of one completion here.
        cache = ContinuousBatchingConfig(num_blocks=2 * len(prompts), max_batch_tokens=2048, use_async_batching=False)
        batch = {"generation_config": config, "continuous_batching_config": cache, "progress_bar": False}
        return lambda: model.generate_batch(prompts, **batch)

    width = padded["input_ids"].shape[1]
    ids = torch.cat([padded["input_ids"], torch.randint(100, 40_000, (len(prompts), args.tokens))], 1)
    mask = torch.cat([padded["attention_mask"], torch.ones(len(prompts), args.tokens, dtype=torch.long)], 1)

    def learn() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, width - 1 : -1]
            logits = model.lm_head(hidden).float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, width:].flatten()).backward()
        model.zero_grad()

    return learn


def settings(args: Any, tokenizer: Any, rows: Any, models: dict[str, Any]) -> list[dict[str, Any]]:
    import torch

    from errata import tasks

    model = models["float32"]
    judge = tasks.verifier(args.task)
    prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in rows["prompt"]]
    prompts = [ids for ids in prompts for _ in range(args.group)]
    columns = {
        name: [v for v in rows[name] for _ in range(args.group)] for name in rows.column_names if name != "prompt"
    }
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    width = padded["input_ids"].shape[1]
    found = []
    print(f"{args.task}, {args.prompts} problems x {args.group}, at most {args.tokens} tokens")
    print(f"{'':44}{'right':>8}{'cut':>8}{'tokens':>8}{'different':>11}")
    for chosen in SETTINGS:
        torch.manual_seed(0)
        full = {"top_k": 0, "top_p": 1.0, **chosen}
        out = model.generate(**padded, do_sample=True, max_new_tokens=args.tokens, **full)[:, width:]
        lengths = [
            int(min((row == tokenizer.eos_token_id).nonzero()[:1].flatten().tolist() or [args.tokens])) for row in out
        ]
        texts = tokenizer.batch_decode(out, skip_special_tokens=True)
        scores = [v.score for v in judge(completions=texts, **columns)]
        groups = [texts[i : i + args.group] for i in range(0, len(texts), args.group)]
        values = {
            "right": statistics.mean(scores),
            "cut": statistics.mean(length >= args.tokens for length in lengths),
            "mean_tokens": statistics.mean(lengths),
            "different": statistics.mean(len(set(g)) for g in groups),
        }
        name = " ".join(f"{k}={v}" for k, v in chosen.items())
        print(
            f"{name:44}{values['right']:8.2f}{values['cut']:8.2f}{values['mean_tokens']:8.1f}{values['different']:11.2f}"
        )
        found.append({"what": f"settings {args.task}", "variant": name, "threads": args.threads, **values})
    return found


if __name__ == "__main__":
    main()
