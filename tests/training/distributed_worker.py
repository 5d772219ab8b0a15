"""Trains cases one after another on one process or, under torchrun, on several; each start costs seconds of imports.

``torchrun ... -m tests.training.distributed_worker FOLDER`` leaves ``FOLDER/CASE.RANK.json`` and ``FOLDER/CASE.pt``. What is
"sampled" depends on a rollout's index alone, so that one process and several learn from the same rollouts. Ragged is
normal: half of the rollouts are shorter, and each case meets rollouts without any token, a half whose rollouts all have no
teacher, and one whose rollouts are all cut off.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer, weights

from errata.experts import Access, LocalExpert, LocalSampler
from errata.recipe.config import ErrataConfig

ROLLOUTS = 12  # of a generation batch: three groups of four, of which the second lies across two processes
STEPS = 4
_SIBLING = {"sources": ["sibling"]}
_DRIFT = {"warmup_steps": 1, "margin": 0.0, "anchor_scale": 20.0}
_REPLAY = {"replay_capacity": 100, "replay_share": 100.0}  # all of the past, so that no draw depends on the process

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo", "micro_batches": 3},
    "grpo-mean-of-rollouts": {"method": "grpo", "micro_batches": 3, "loss_type": "grpo"},
    # Three generation batches an epoch and two an optimizer step: every other step has half of the micro-batches.
    "grpo-partial": {"method": "grpo", "micro_batches": 6, "steps_per_generation": 3, "train_rows": 9},
    "sdpo": {"method": "sdpo", "micro_batches": 3, "method_args": _SIBLING},
    "sdpo-live": {"method": "sdpo", "micro_batches": 3, "method_args": _SIBLING, "teacher": "live"},
    "srpo": {"method": "srpo", "micro_batches": 3, "method_args": _SIBLING},
    "srpo-one-piece": {"method": "srpo", "method_args": _SIBLING},
    "distil": {"method": "distil", "micro_batches": 3, "method_args": _SIBLING},
    "distil-one-piece": {"method": "distil", "method_args": _SIBLING, "teacher": "live"},
    "drift": {"method": "drift", "micro_batches": 3, "method_args": _DRIFT | _SIBLING},
    "drift-one-piece": {"method": "drift", "method_args": _DRIFT | _SIBLING},
    "drift-trust-region": {"method": "drift", "method_args": _DRIFT | _SIBLING, "teacher": "trust_region"},
    "twice": {"method": "distil", "micro_batches": 3, "num_iterations": 2, "method_args": _SIBLING, "teacher": "live"},
    "replay": {"method": "distil", "method_args": _SIBLING, **_REPLAY},
    "samples": {
        "method": "distil",
        "micro_batches": 3,
        "method_args": {**_SIBLING, "cost": "ce"},
        "access": {"gives": "samples", "samples": 2, "share": 0.5, "where": "disagreement"},
        "expert": "model",
    },
    "sampler": {
        "method": "distil",
        "method_args": {**_SIBLING, "cost": "ce"},
        "access": {"gives": "samples", "samples": 2, "share": 0.5, "where": "entropy"},
        "expert": "text",
    },
}


def solved(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(c[-1]["content"].startswith("a")) for c in completions]


def completions(batch: int, first: int, n: int) -> list[list[int]]:
    """Token ids of the rollouts ``first`` to ``first + n`` of a generation batch."""
    found = []
    for index in range(first, first + n):
        rng, half = random.Random(f"{batch}-{index}"), int(index >= ROLLOUTS // 2)
        # No group that reaches into a half is solved: a process without any teacher, the second one first.
        none_solved = (batch % 4 == 0 and index >= 4) or (batch % 4 == 1 and index < 8)
        cut_off = batch % 4 == 2 and half == 1
        first_letter = "a" if rng.random() < 0.5 and not none_solved else "b"
        length = 9 if cut_off else rng.randint(0, 3 if half == batch % 2 else 8)
        text = (first_letter + "".join(rng.choice("abcdef") for _ in range(9)))[: length + cut_off]
        found.append(TOKENIZER.convert_tokens_to_ids(list(text)) + [TOKENIZER.eos_token_id] * (not cut_off))
    return found


def write_expert(folder: Path) -> None:
    """A model that is not the policy, with the policy's tokenizer."""
    build_model(len(TOKENIZER), seed=1).save_pretrained(folder / "expert")
    TOKENIZER.save_pretrained(folder / "expert")


def run(name: str, folder: Path, processes: int, rank: int) -> None:
    """Train a case and write what came of it."""
    case = {"micro_batches": 1, **CASES[name]}
    micro_batches, expert = case.pop("micro_batches"), case.pop("expert", None)
    per_generation = case.get("steps_per_generation", micro_batches)
    if "access" in case:
        case["access"] = Access(**case["access"])
    if expert == "model":
        case["expert"] = LocalExpert(str(folder / "expert"), TOKENIZER).prepared_by
    elif expert == "text":
        case["expert"] = lambda prepare: LocalSampler(str(folder / "expert"), TOKENIZER, draws=2)
    t = trainer(
        folder / name,
        verifiers=[solved],
        per_device_train_batch_size=ROLLOUTS // (processes * per_generation),
        gradient_accumulation_steps=micro_batches,
        max_steps=STEPS,
        mask_truncated_completions=True,
        optim="sgd",  # Adam would make steps of the learning rate out of rounding errors
        learning_rate=0.1,
        **case,
    )
    seen: list[dict[str, Any]] = []
    on_rollouts = t.on_rollouts

    def noted(rows: Any, tokens: Any) -> Any:
        batch = on_rollouts(rows, tokens)
        seen.append({"has_teacher": int(batch.teacher.has_teacher.sum()), "tokens": int(tokens.mask.sum()),
                     "longest": tokens.mask.shape[1], "indices": [r.index for r in batch.rollouts]})  # fmt: skip
        return batch

    t.on_rollouts = noted
    t._generate_single_turn = lambda prompts, *_, **__: (
        completions(len(seen), t.accelerator.process_index * len(prompts), len(prompts)),
        None,
    )
    t.train()
    assert t.accelerator.num_processes == processes
    logs = [{k: v for k, v in log.items() if not k.startswith("step_time")} for log in t.state.log_history[:-1]]
    (folder / f"{name}.{rank}.json").write_text(
        json.dumps({"logs": logs, "batches": seen, "memory": t.memory.state_dict()})
    )
    if rank == 0:
        torch.save(weights(t.accelerator.unwrap_model(t.model)), folder / f"{name}.pt")


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or CASES:
        print(name, file=sys.stderr, flush=True)  # the last one named is the one that failed
        run(name, folder, int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "config":
        args = ErrataConfig(output_dir=sys.argv[2])  # without use_cpu
        print(f"{args.process_index} of {args.world_size} on {args.device.type}", flush=True)
    else:
        faulthandler.dump_traceback_later(400, exit=True)  # where a collective waits that not all processes call
        main(Path(sys.argv[1]), sys.argv[2:])
