"""The house policy made to end its answers at any token, for docs/length.md.

    python benchmarks/free_house.py FOLDER
    errata train recipes/demo.yaml --model FOLDER --max_steps 40 --eval_steps 40 --eval_problems 48 \\
        --method_args.with_feedback false --method_args.future_weight 1

The row of the end token in the (tied) embedding is fitted by least squares on hidden states of 300 sampled answers, plain and
with the solution shown: probability .015 inside an answer, nearly 1 at its end.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import errata.house
from errata.tasks import rulebook

HOUSE = str(Path(errata.house.__file__).parent)
PROBABILITY, ANSWERS, END_WEIGHT, RIDGE = 0.015, 300, 6, 1e-3


def prompts(tokenizer: Any, shown: bool) -> Any:
    """Left-padded prompts, plain or as the template ``house`` shows a reference."""
    found = []
    for row in rulebook.load("rulebook/new-rule").select(range(ANSWERS)):
        text = row["prompt"][0]["content"] + (f"\nsolved:{row['reference']}" if shown else "")
        message = [{"role": "user", "content": text}]
        found.append(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
    return tokenizer.pad({"input_ids": found}, return_tensors="pt")


@torch.no_grad()
def states(model: Any, prompt: Any, answers: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Hidden states (N,T,H) that predict the answers' tokens, and log-sum-exp (N,T) of all logits but the end token's."""
    ids = torch.cat([prompt.input_ids, answers], 1)
    attention = torch.cat([prompt.attention_mask, torch.ones_like(answers)], 1)
    out = model(ids, attention_mask=attention, output_hidden_states=True)
    here = slice(prompt.input_ids.shape[1] - 1, -1)
    logits = out.logits[:, here].double()
    logits[..., end] = -math.inf
    return out.hidden_states[-1][:, here].double(), logits.logsumexp(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(HOUSE, padding_side="left"),
        AutoModelForCausalLM.from_pretrained(HOUSE).eval(),
    )
    end = tokenizer.eos_token_id

    def answer(prompt: Any) -> Tensor:
        out = model.generate(**prompt, do_sample=True, max_new_tokens=30, top_k=0)
        return out[:, prompt.input_ids.shape[1] :]  # type: ignore[no-any-return]

    views = {name: prompts(tokenizer, name == "shown") for name in ("plain", "shown")}
    answers = answer(views["plain"])
    ended = (answers == end).cumsum(1)
    inside, final = ended == 0, (answers == end) & (ended == 1)
    x, y = [], []
    for prompt in views.values():
        hidden, others = states(model, prompt, answers, end)
        x += [hidden[inside], hidden[final].repeat(END_WEIGHT, 1)]
        y += [others[inside] + math.log(PROBABILITY), others[final].repeat(END_WEIGHT) + 5]
    a, b = torch.cat(x), torch.cat(y)
    ridge = RIDGE * len(a) * a.square().mean() * torch.eye(a.shape[1], dtype=a.dtype)
    row = torch.linalg.solve(a.T @ a + ridge, a.T @ b)
    for name, prompt in views.items():
        hidden, others = states(model, prompt, answers, end)
        p = torch.sigmoid(hidden @ row - others)
        print(
            f"{name}: ends inside an answer with probability {p[inside].mean():.3f}, at its end {p[final].mean():.3f}"
        )
    with torch.no_grad():
        model.get_output_embeddings().weight[end] = row.float()
    for name, prompt in views.items():
        print(f"{name}: mean length {((answer(prompt) == end).cumsum(1) == 0).sum(1).add(1).double().mean():.1f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
