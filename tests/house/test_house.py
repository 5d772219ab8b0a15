"""The house policy is what its card says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.contexts.render import Renderer
from errata.house import HOUSE_PATH
from errata.records import Rollout, TeacherContext, Verdict
from errata.tasks import load, verifier

TASKS = ("rulebook/sharpen", "rulebook/new-rule")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HOUSE_PATH)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(HOUSE_PATH).eval()


@pytest.fixture(scope="module")
def card():
    """Task → column → number, read from the card's table."""
    lines = [
        line for line in Path(HOUSE_PATH, "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = next(row for row in table if row[0] == "held-out problems")
    return {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in table if row[0] in TASKS}


@torch.no_grad()
def answer(model, tokenizer, messages):
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**inputs, max_new_tokens=48)
    return tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(model, tokenizer, rows, messages, copies=1):
    torch.manual_seed(0)
    judge = verifier(rows[0]["task"], feedback="bit")
    scores = []
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        for _ in range(copies):
            texts = answer(model, tokenizer, messages[start : start + 64])
            scores += [
                v.score for v in judge(completions=texts, expression=some["expression"], rulebook=some["rulebook"])
            ]
    return sum(scores) / len(scores)


def test_it_is_small(model):
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() < 1_000_000
    assert sum(f.stat().st_size for f in Path(HOUSE_PATH).iterdir() if f.is_file()) <= 3_000_000


def test_a_prompt_is_a_token_per_character_between_its_marks(tokenizer):
    messages = [{"role": "user", "content": "7a+3=?"}, {"role": "assistant", "content": "7a+3=0"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|user|>7a+3=?<|assistant|>7a+3=0<|end|>"
    assert len(tokenizer(text)["input_ids"]) == 6 + 6 + 3
    assert tokenizer.eos_token == "<|end|>"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)


def test_any_text_can_be_read(tokenizer):
    ascii_text = "\n" + "".join(map(chr, range(32, 127)))
    assert tokenizer.decode(tokenizer(ascii_text)["input_ids"]) == ascii_text
    assert tokenizer("Δ")["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("task", TASKS)
def test_it_copies_a_shown_solution_as_the_card_says(model, tokenizer, card, task):
    rows = load(task, split="test").select(range(64))
    renderer = Renderer("house")
    shown = [
        renderer.render(
            Rollout(0, "", row["prompt"], "", Verdict(0.0)), TeacherContext("reference", solution=row["reference"])
        ).prompt
        for row in rows
    ]
    assert shown[0] == [{"role": "user", "content": f"{rows[0]['expression']}=?\nsolved:{rows[0]['reference']}"}]
    got = accuracy(model, tokenizer, rows, shown)
    assert got >= 0.9
    assert got == pytest.approx(card[task]["solution"], abs=0.06)


@pytest.mark.parametrize("task", TASKS)
def test_alone_it_solves_the_few_per_cent_that_the_card_says(model, tokenizer, card, task):
    rows = load(task, split="test").select(range(64))
    got = accuracy(model, tokenizer, rows, rows["prompt"], copies=8)
    assert 0.01 <= got <= 0.12
    assert got == pytest.approx(card[task]["avg@8"], abs=0.04)
