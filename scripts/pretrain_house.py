"""Pre-trains the house policy and writes it with its card: ``python scripts/pretrain_house.py --seed 0 --out DIR``.

Three stages under one cosine learning rate: single facts of the usual rules; short problems without a context and in each
teacher context, from which copying and correcting are learned fast; problems of all lengths. ``house_data.py`` makes the data.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from house_data import KINDS, SLIP, SLIP_WEIGHTS, UNKNOWN, Example, draw_plain, draw_shown
from house_measure import measure
from small_policy import make_model, make_tokenizer, optimize
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from errata.contexts.render import Renderer

PAD, UNK, USER, ASSISTANT, END = SPECIAL = ("<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
STAGES = (400, 500, 1100)
"""Optimizer steps of each stage: facts, short problems, all lengths."""
BATCH = {"plain": 24, "solution": 16, "trace": 24, "correction": 12}
USER_WEIGHT = 0.2
"""Weight of the loss on the user's text, which contains solutions too."""


def make_policy() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The untrained policy, and its tokenizer: one token per printable ASCII character."""
    tokenizer = make_tokenizer(SPECIAL, CHAT_TEMPLATE, length=4096)
    return make_model(tokenizer, width=128, layers=3), tokenizer


def batches(
    rng: random.Random, step: int, renderer: Renderer, stages: tuple[int, int, int] = STAGES
) -> Iterator[tuple[str, list[Example]]]:
    """(kind, examples) of one step's batches, each of one kind and one length, so that little is padded."""
    facts, short, _ = stages
    if step < facts:
        length = rng.choice([1, 1, 2])
        yield "facts", [draw_plain(rng, length, slip=0.0) for _ in range(128 // length)]
        return
    for kind in KINDS:
        length = rng.choice([1, 2, 3, 1, 2, 3, rng.randint(4, 7)] if step < facts + short else [2, 3, 4, 4, 5, 6, 6, 7])
        if kind == "plain":
            yield kind, [draw_plain(rng, length, SLIP) for _ in range(BATCH[kind])]
        else:
            yield kind, [draw_shown(rng, kind, length, renderer) for _ in range(BATCH[kind])]


def encode(examples: list[Example], ids: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets (-1 where there is none) and a mask of the assistant's targets, each (B,T), padded on the right."""
    rows, targets, starts = [], [], []
    for example in examples:
        user = [ids[c] for c in example.user]
        rows.append([ids[USER], *user, ids[ASSISTANT], *(ids[c] for c in example.written)])
        said = [-1 if c == UNKNOWN else ids[c] for c in example.target]
        targets.append([*user, ids[ASSISTANT], *said, ids[END]])
        starts.append(len(user) + 1)
    width = max(map(len, rows))
    tokens = torch.tensor([r + [ids[PAD]] * (width - len(r)) for r in rows])
    wanted = torch.tensor([t + [-1] * (width - len(t)) for t in targets])
    return tokens, wanted, torch.arange(width) >= torch.tensor(starts)[:, None]


def noise(ids: dict[str, int]) -> Tensor:
    """(V,V) target distributions of a result without a context: SLIP spread from each right digit; other rows are one-hot."""
    kernel = torch.eye(len(ids))
    weights = torch.tensor(SLIP_WEIGHTS) * SLIP / sum(SLIP_WEIGHTS)
    weights[0] = 1.0 - SLIP
    for digit in range(10):
        for distance in range(10):
            kernel[ids[str(digit)], ids[str((digit + distance) % 10)]] = weights[distance]
    return kernel


def train(
    model: Qwen3ForCausalLM,
    ids: dict[str, int],
    rng: random.Random,
    renderer: Renderer,
    stages: tuple[int, int, int] = STAGES,
) -> list[float]:
    """Train ``model`` in place and return each step's loss, the mean over its batches of nats per assistant token."""
    kernel = noise(ids)

    def backward(step: int) -> tuple[float, str]:
        report, losses = [], []
        for kind, examples in batches(rng, step, renderer, stages):
            tokens, targets, assistant = encode(examples, ids)
            hidden = model.model(input_ids=tokens).last_hidden_state
            has = targets >= 0
            logp = torch.log_softmax(model.lm_head(hidden[has]), -1)
            label, own = targets[has], assistant[has]
            result = own & (tokens[has] == ids["="])
            loss = -logp.gather(-1, label[:, None]).squeeze(-1)
            if kind == "plain":
                loss = torch.where(result, -(kernel[label] * logp).sum(-1), loss)
            weight = torch.where(own, 1.0, USER_WEIGHT)
            torch.autograd.backward((loss * weight).sum() / own.sum() / len(KINDS))
            losses.append(loss[own].mean().item())
            report.append(f"{kind} {(logp.argmax(-1) == label)[result].float().mean():.2f}")
        return sum(losses) / len(losses), f"right results: {', '.join(report)}"

    return optimize(model, sum(stages), backward)


def card(numbers: dict[str, dict[str, float]], model: Qwen3ForCausalLM, seed: int, minutes: float) -> str:
    cores = "one thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    command = f"`python scripts/pretrain_house.py --seed {seed} --out DIR`"
    how = f"{command}: {minutes:.0f} minutes, {cores} of {_processor()} ({versions})."
    return card_text(numbers, model.num_parameters(), how)


def card_text(numbers: dict[str, dict[str, float]], parameters: int, made: str) -> str:
    """The card. ``made``: the sentence on how, for how long and on what it was trained."""
    head = next(iter(numbers.values()))
    rows = [f"| {name} | {' | '.join(f'{v:.3f}' for v in row.values())} |" for name, row in numbers.items()]
    table = "\n".join([f"| held-out problems | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *rows])
    return CARD.format(parameters=f"{parameters:,}", table=table, made=made, slip=f"{SLIP:.0%}")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The house policy

A Qwen3-architecture model of {parameters} parameters with a token per character, made for errata's embedded world:
arithmetic mod 10, step by step, under a rulebook that the prompt does not tell. It is small enough to be trained further on
a laptop's processor, and has the habits of a large model that learning from rich feedback needs: it copies a shown solution,
repairs its attempt from an execution trace and follows a correction, also under rules it has never met.

| | text |
|---|---|
| problem | `7a+3b*4c-2=?` |
| solution | `7a+3=0b*4=0c-2=8` |
| solution under the new rule `x*n+3` | `7a+3=0b*4=3c-2=1` |
| trace of an attempt | `0b*4=3 not 0` |

## What it can do

Sampled at temperature 1. In a context, each problem's first failed attempt is the one shown; `trace all` names every wrong
step of it, `trace first` the first.

{table}

`rulebook/sharpen` keeps the usual rules; alone, every step is wrong in {slip} of cases, as pre-trained. In
`rulebook/new-rule` `*` means `x*n+3`, which no rulebook of pre-training did. Under `random tables` an operator means a table of
random digits drawn for that problem alone: only what the context shows can be known, so a trace, which executes each step on the
attempt's own digits, cannot suffice there. Sampling matters: the likeliest digit is the right one, only noise makes the plain
policy fail, so greedy decoding solves `rulebook/sharpen` at once.

## How it was made

{made}
Training problems are drawn from the training split's side of the checksum; held-out chains never occur.
"""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    started = time.monotonic()
    renderer = Renderer("house")
    model, tokenizer = make_policy()
    train(model, tokenizer.get_vocab(), random.Random(args.seed), renderer)
    minutes = (time.monotonic() - started) / 60
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    numbers = measure(model.eval(), tokenizer, renderer)
    text = card(numbers, model, args.seed, minutes)
    (args.out / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
