"""Accuracy on ``rulebook/new-rule`` against the number of queries to the expert: the table of docs/experts.md.

    python benchmarks/experts.py [--seeds 3] [--steps 60] [--only NAME ...] [--out runs/experts]

The other model is a house policy that is first trained here on solutions under the new rule. Every cell is one ``errata train``
with DistIL, the house policy and the same problems. Two run at a time, one thread each. A *call* is what one would pay for: a
rollout scored whole by a local model, a request to the server, or one drawn token of a black box. A second start continues
where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMON = {
    "learning_rate": "2e-3",
    "eval_problems": 64,
    "eval_on_start": "true",
    "eval_steps": 20,
    "save_strategy": "no",
    "rollouts_saved": 0,
    "eval_teacher_problems": 0,
    "preflight": 0,
}


def cells() -> dict[str, dict[str, Any]]:
    """Settings of each cell; EXPERT and SERVER are replaced by the model and the address made here."""
    other = {"expert": "EXPERT", "method_args.sources": "[expert]", "method_args.with_feedback": "false"}
    found = {
        "self, whole": {},
        "self, whole, cost ce": {"method_args.cost": "ce"},
        "another model, whole": other,
        "another model, whole, cost ce": other | {"method_args.cost": "ce"},
        "server, top 5": other
        | {"expert": "SERVER", "expert_args.gives": "topk", "expert_args.top_k": 5, "expert_args.model": "expert"},
    }
    black = other | {"method_args.cost": "ce", "expert_args.gives": "samples", "expert_args.where": "entropy"}
    for share in (1.0, 0.25, 0.1):
        for n in (1, 4, 16):
            name = f"black box, {n} sample{'s' * (n > 1)} at {share:.0%}"
            found[name] = black | {"expert_args.samples": n, "expert_args.share": share}
    quarter = found["black box, 4 samples at 25%"]
    found["black box, 4 samples at 25%, evenly spaced"] = quarter | {"expert_args.where": "every"}
    found["black box, 4 samples at 25%, replayed"] = quarter | {"replay_capacity": 512}
    found["black box, 1 sample at 10%, replayed"] = found["black box, 1 sample at 10%"] | {"replay_capacity": 512}
    return found


def make_expert(folder: Path, steps: int = 300) -> None:
    """A house policy that knows the new rule: supervised on its training problems' solutions."""
    import random

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.house import HOUSE_PATH
    from errata.tasks import load

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(str(HOUSE_PATH), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(str(HOUSE_PATH), padding_side="left")
    examples = []
    for row in load("rulebook/new-rule"):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        question = tokenizer(prompt)["input_ids"]
        answer = tokenizer(row["reference"])["input_ids"] + [tokenizer.eos_token_id]
        examples.append((question + answer, len(question)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    rng = random.Random(0)
    for _ in range(steps):
        batch = rng.sample(examples, 128)
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for i, (tokens, start) in enumerate(batch):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, start : len(tokens)] = torch.tensor(tokens[start:])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with the other model and vLLM's form of the protocol: the stand-in that the tests use."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tests.experts.remote.fake_server import FakeServer, PolicyAnswers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Quick(PolicyAnswers):  # type: ignore[misc]
        """Answers without the ranks of tokens, which are not read here."""

        def prompt_logprobs(self, ids: list[int], k: int) -> list[Any]:
            logp = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            top = logp.topk(k, dim=-1)
            rows = zip(top.indices.tolist(), top.values.tolist(), ids[1:], logp.tolist(), strict=False)
            found = [dict(zip(i, v, strict=True)) | {own: every[own]} for i, v, own, every in rows]
            return [None, *({token: {"logprob": value} for token, value in row.items()} for row in found)]

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with FakeServer(Quick(model, AutoTokenizer.from_pretrained(folder))) as server:
        yield server.url


def run(name: str, settings: dict[str, Any], seed: int, options: argparse.Namespace, url: str) -> dict[str, float]:
    slug = "".join(c if c.isalnum() else "-" for c in name)
    folder = options.out / f"{slug}-{seed}"
    words = {**COMMON, **settings, "seed": seed, "max_steps": options.steps, "output_dir": folder}
    words = {k: {"EXPERT": options.out / "expert", "SERVER": url}.get(str(v), v) for k, v in words.items()}
    command = [sys.executable, "-m", "errata", "train", str(ROOT / "recipes/demo.yaml")]
    command += [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, seed {seed}:\n{done.stderr[-2000:]}")
    return read(folder, settings)


def read(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    states = sum(s.get("expert/states", 0.0) for s in steps)
    if settings.get("expert_args.gives") == "samples":
        calls = states * settings["expert_args.samples"]
    elif "expert_args.gives" in settings:
        calls = steps[-1]["expert/calls"]
    else:
        calls = 128.0 * len(steps)
    early = next(e["avg@8"] for e in evaluations if e["step"] == 20)
    return {"early": early, "after": evaluations[-1]["avg@8"], "calls": calls, "states": states}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="cells whose name begins so")
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    options = parser.parse_args()
    if not (options.out / "expert" / "config.json").is_file():
        make_expert(options.out / "expert")
    command = [sys.executable, "-m", "errata", "eval", str(options.out / "expert"), "--task", "rulebook/new-rule"]
    command += ["--problems", "64", "--max_completion_length", "40"]
    evaluated = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"the other model: avg@8 {json.loads(evaluated.stdout)['avg@8']:.3f} of its own", flush=True)
    wanted = {
        name: settings
        for name, settings in cells().items()
        if not options.only or any(name.startswith(o) for o in options.only)
    }
    with serving(options.out / "expert") as url, ThreadPoolExecutor(options.jobs) as pool:
        jobs = {
            (name, seed): pool.submit(run, name, settings, seed, options, url)
            for seed in range(options.seeds)
            for name, settings in wanted.items()
        }
        print(f"{options.steps} steps of 16 x 8 rollouts, {options.seeds} seeds, 64 held-out problems")
        print(
            "| expert | calls | states queried | avg@8 at step 20 | at the end | each seed |\n|---|---|---|---|---|---|"
        )
        for name in wanted:
            rows = [jobs[name, seed].result() for seed in range(options.seeds)]
            early, after = (_mean(rows, key) for key in ("early", "after"))
            mean = {key: statistics.mean(r[key] for r in rows) for key in rows[0]}
            states = f"{mean['states']:,.0f}" if mean["states"] else "all"
            each = ", ".join(f"{100 * r['after']:.0f}" for r in rows)
            print(f"| {name} | {mean['calls']:,.0f} | {states} | {early} | {after} | {each} |", flush=True)


def _mean(rows: list[dict[str, float]], key: str) -> str:
    values = [100 * r[key] for r in rows]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"


if __name__ == "__main__":
    main()
