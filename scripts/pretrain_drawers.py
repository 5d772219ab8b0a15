"""Make the small policy of the task ``drawers`` again: ``python scripts/pretrain_drawers.py --out DIR`` (about a minute).

It learns to call the tool, to repair a call from the tool's error, and to use keys that its prompt tells, each in worlds whose
keys are drawn anew, three of ten the usual ones. So without a context it uses the usual key or one at random.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from small_policy import make_model, make_tokenizer, optimize
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from errata.contexts import transcript
from errata.contexts.turns import hindsight
from errata.tasks.drawers import CALLS, DRAWERS, USUAL, Drawers

SPECIAL = ("<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
PAD, UNK, USER, ASSISTANT, TOOL, END = SPECIAL
CALL = ('<call>{"name": "', "open", '", "arguments": {"drawer": "', '", "key": "', '"}}</call>')
WORDS = (
    *CALL,
    *('open({"drawer": "', '"})', " opened by key ", " needs key ", " is shut", " wrong", "-> "),
    *("\ntold:", "\nsolved:", "done"),
)
"""Texts of the world that are one token; all else is a token for each character."""
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content or '' }}"
    '{% for c in m.tool_calls or [] %}<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</call>{% endfor %}"
    "{% else %}<|{{ 'tool' if m.role == 'tool' else 'user' }}|>{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": r"</call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}
CONTEXTS = ("nothing", "told", "told", "solved")
"""What the prompt tells; half of the time errors, in the wording of :data:`TEMPLATE`."""
TEMPLATE = (
    "{{ prompt }}{% for text in solutions %}\nsolved:{{ text }}{% endfor %}"
    "{% if feedback %}\ntold:{{ feedback }}{% endif %}"
)
"""The ``context_template`` of the recipes with this policy."""
SLIP = 0.3
IS_USUAL = 0.3
"""The chance that a drawer has its usual key in a world of pre-training."""
STEPS, BATCH = 700, 24


def make_policy() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The untrained policy, and its tokenizer: a token for each word of the world, and for each printable ASCII character."""
    tokenizer = make_tokenizer(SPECIAL, CHAT_TEMPLATE, words=WORDS, length=1024)
    tokenizer.response_template = RESPONSE_TEMPLATE
    return make_model(tokenizer, width=64, layers=2), tokenizer


@dataclass
class Episode:
    """A rollout of the policy to be learned, in a world of its own."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """For each message the key to be learned; empty where there is none."""


def play(rng: random.Random, world: Drawers, wanted: str, told: str, slip: float = 0.0) -> Episode:
    """Open the drawers in their order with the keys that are known, else at random.

    ``slip``: the chance of a random key where one is known. The known one is then the target, so that a teacher who was told it
    knows it after any attempt of the student.
    """
    episode = Episode()
    world.reset()
    known = {line[0]: line[-1] for line in told.replace("-> ", "").splitlines() if " key " in line}
    for _ in range(CALLS + 1):
        left = [drawer for drawer in wanted if drawer not in world.opened]
        if not left:
            episode.messages.append({"role": "assistant", "content": "done"})
            episode.targets.append("")
            break
        drawer = left[0]
        target = known.get(drawer) or str(rng.randrange(8))
        key = str(rng.randrange(8)) if rng.random() < slip else target
        call = {"name": "open", "arguments": {"drawer": drawer, "key": key}}
        episode.messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        )
        episode.targets.append(target)
        if len(world.said) == CALLS:
            break
        said = world.open(drawer, key)
        if " needs key " in said:
            known[drawer] = said[-1]
        episode.messages.append({"role": "tool", "content": said})
        episode.targets.append("")
    return episode


def draw(rng: random.Random) -> tuple[str, Episode]:
    """A prompt with or without a context, and a rollout."""
    world = Drawers()
    world.keys = {d: USUAL[d] if rng.random() < IS_USUAL else str(rng.randrange(8)) for d in DRAWERS}
    wanted = "".join(rng.sample(DRAWERS, 2))
    prompt, told, kind = f"open {' '.join(wanted)}", "", rng.choice(CONTEXTS)
    if kind == "told":
        other = play(rng, world, wanted, "")
        result = f"{world.wrong} wrong"
        lines = hindsight(other.messages, (), rng.choice([result, ""]))
        told = rng.choice([*lines, result, "\n".join(world.said)])
        prompt += f"\ntold:{told}" if told else ""
    elif kind == "solved":
        told = transcript(
            play(rng, world, wanted, "".join(f"{d} needs key {world.keys[d]}\n" for d in wanted)).messages
        )
        prompt += f"\nsolved:{told}"
    return prompt, play(rng, world, wanted, told, SLIP if told else 0.0)


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str, episode: Episode) -> tuple[list[int], list[int]]:
    """Tokens, and what is to be learned at each: a token where the policy writes, else -100."""
    parts, wanted = [f"{USER}{prompt}{END}"], [""]
    for message, target in zip(episode.messages, episode.targets, strict=True):
        text = message["content"]
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            text += f"{CALL[0]}{CALL[1]}{CALL[2]}{arguments['drawer']}{CALL[3]}{arguments['key']}{CALL[4]}"
        parts.append(f"{ASSISTANT if message['role'] == 'assistant' else TOOL}{text}{END}")
        wanted.append(target)
    ids: list[int] = []
    targets: list[int] = []
    for part, target in zip(tokenizer.backend_tokenizer.encode_batch(parts), wanted, strict=True):
        ids += part.ids
        if part.tokens[0] != ASSISTANT:
            targets += [-100] * len(part.ids)
            continue
        learned = [-100, *part.ids[1:]]  # the token that opens a turn is the template's
        if target:
            learned[part.tokens.index(CALL[3]) + 1] = tokenizer.convert_tokens_to_ids(target)
        targets += learned
    return ids, targets


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int = STEPS
) -> list[float]:
    """Train in place on the likelihood of the policy's own tokens, each batch of fresh worlds. Returns each step's loss."""

    def backward(step: int) -> tuple[float, str]:
        examples = [encode(tokenizer, *draw(rng)) for _ in range(BATCH)]
        width = max(len(ids) for ids, _ in examples)
        tokens = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in examples])
        targets = torch.tensor([wanted + [-100] * (width - len(wanted)) for _, wanted in examples])[:, 1:]
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state[targets >= 0]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), targets[targets >= 0])
        torch.autograd.backward(loss)
        return loss.item(), ""

    return optimize(model, steps, backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model, tokenizer = make_policy()
    train(model, tokenizer, random.Random(args.seed))
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{model.num_parameters():,} parameters in {args.out}")


if __name__ == "__main__":
    main()
