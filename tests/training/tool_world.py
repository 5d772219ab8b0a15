"""A world of several turns: a policy small enough to learn in seconds to call a tool and to answer from what it says.

It calls ``add`` with the two numbers of its problem. Told the sum it answers with it or, half of the time, with one more;
right is one more, so that every group holds both.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from datasets import Dataset
from tests.tiny import build_model, build_tokenizer

TEMPLATE = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t.function.name }} {% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>"
    "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}
PAIRS = [(1, 2), (3, 4), (2, 5), (0, 6)]
STEPS, LEARNING_RATE = 300, 1e-2
SHOWN = " go"
"""What the environment shows at its reset, after the problem."""

USER_CODE = '''
"""What a user of errata writes: a tool, an environment with the same tool, and who judges."""

def add(a: int, b: int) -> str:
    """
    Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return str(a + b)


class Adder:
    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, **row):
        self.row, self.calls = row["problem_id"], []
        return " go"

    def add(self, a: int, b: int) -> str:
        """
        Adds two numbers.

        Args:
            a: the first.
            b: the second.
        """
        self.calls.append([a, b])
        return str(a + b)


class Judging(Adder):
    def get_reward(self):
        return {"score": 0.0, "feedback": f"{len(self.calls)} calls", "kind": "tool"}


def one_more(completions, answer, environments=None, **_):
    verdicts = []
    for i, (turns, right) in enumerate(zip(completions, answer)):
        said = turns[-1]["content"]
        feedback = f"{right} not {said}"
        if environments is not None:
            assert isinstance(environments[i], Adder)
            feedback += f" after {environments[i].calls}"
        solved = said == right
        verdicts.append({"score": float(solved), "feedback": "" if solved else feedback, "kind": "tool"})
    return verdicts
'''


def tool_tokenizer() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"])
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    return tokenizer


def tool_rows() -> Dataset:
    return Dataset.from_list(
        [
            {"problem_id": f"{a}+{b}", "prompt": [{"role": "user", "content": f"{a}+{b}"}], "answer": str(a + b + 1)}
            for a, b in PAIRS
        ]
    )


@functools.cache
def _learned() -> tuple[Any, dict[str, Any]]:
    tokenizer = tool_tokenizer()
    texts = []
    for answers in (0, 1):
        for k, (a, b) in enumerate(PAIRS):
            for j, shown in enumerate(("", SHOWN)):
                answer = a + b + (answers + j + k) % 2
                call = json.dumps({"name": "add", "arguments": {"a": a, "b": b}})
                texts.append(
                    f"<|system|>add <|end|><|user|>{a}+{b}{shown}<|end|><|assistant|><tool_call>{call}</tool_call><|end|>"
                    f"<|user|><tool_response>{a + b}</tool_response><|end|><|assistant|>{answer}<|end|>"
                )
    model = build_model(len(tokenizer), hidden=64)
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    own = torch.zeros_like(batch["input_ids"])
    for row, ids in enumerate(batch["input_ids"].tolist()):
        mine = 0
        for column, token in enumerate(ids):
            own[row, column] = mine
            mine = int(tokenizer.decode([token]) == "<|assistant|>" or (mine and token != tokenizer.eos_token_id))
    labels = batch["input_ids"].masked_fill(own == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        half = slice(0, 8) if step % 2 else slice(8, 16)
        loss = model(batch["input_ids"][half], attention_mask=batch["attention_mask"][half], labels=labels[half]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.config, {name: p.detach().clone() for name, p in model.state_dict().items()}


def tool_policy() -> Any:
    """A fresh copy of the policy that has learned the world."""
    from transformers import Qwen3ForCausalLM

    config, state = _learned()
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(state)
    model.generation_config.eos_token_id = tool_tokenizer().eos_token_id
    return model
