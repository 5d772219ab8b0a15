"""Sampling from a real, tiny model: the right distribution, the right prompts, and nothing disturbed."""

import random

import numpy as np
import pytest
import torch

from errata.evaluation import evaluate, sample
from errata.records import Verdict


def chat(text):
    return [{"role": "user", "content": text}]


ROWS = [
    {"problem_id": f"p{i}", "prompt": chat(text), "answer": text} for i, text in enumerate(["1", "a longer one", "22"])
]
SETTINGS = {"k": 2, "max_completion_length": 6, "batch_size": 4}


def accept(completions, **columns):
    return [Verdict(1.0)] * len(completions)


@pytest.fixture
def model(tiny_model):
    # What published models bring along must not shape the evaluation.
    tiny_model.generation_config.top_k = 2
    tiny_model.generation_config.repetition_penalty = 1.5
    tiny_model.generation_config.temperature = 0.1
    tiny_model.generation_config.do_sample = True
    return tiny_model


def next_token_probabilities(model, tokenizer, prompt):
    ids = tokenizer(
        tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True), return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(input_ids=ids["input_ids"]).logits[0, -1].double().softmax(-1)


def test_first_tokens_follow_the_models_own_distribution(model, tokenizer):
    seen = []

    def collect(completions, completion_ids, **columns):
        seen.extend(ids[0] for ids in completion_ids)
        return [1.0] * len(completions)

    n = 4000
    sample(model, tokenizer, ROWS[:1], collect, k=n, max_completion_length=1, batch_size=1000)
    p = next_token_probabilities(model, tokenizer, ROWS[0]["prompt"])
    counts = torch.bincount(torch.tensor(seen), minlength=len(p))
    expected = n * p
    common = expected > 5
    chi2 = float(((counts - expected) ** 2 / expected)[common].sum())
    freedom = int(common.sum())
    assert freedom > 30
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def test_top_p_and_temperature_are_what_was_asked(model, tokenizer):
    def first_tokens(**settings):
        seen = set()

        def collect(completions, completion_ids, **columns):
            seen.update(ids[0] for ids in completion_ids)
            return [1.0] * len(completions)

        sample(model, tokenizer, ROWS[:1], collect, k=500, max_completion_length=1, batch_size=500, **settings)
        return seen

    p = next_token_probabilities(model, tokenizer, ROWS[0]["prompt"])
    ranked = p.argsort(descending=True)
    nucleus = ranked[: int((p[ranked].cumsum(0) < 0.3).sum()) + 1].tolist()
    assert first_tokens(top_p=0.3) <= set(nucleus)
    assert len(first_tokens(top_p=1.0)) > len(nucleus)
    assert first_tokens(temperature=0.0) == {int(ranked[0])}


def greedy(model, tokenizer, prompt, steps):
    """Token by token, without cache, padding or the library's generation."""
    ids = tokenizer(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))["input_ids"]
    start = len(ids)
    while len(ids) < start + steps and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            ids = [*ids, int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_neither_padding_nor_the_models_settings_change_what_is_answered(model, tokenizer, batch_size):
    settings = {"k": 1, "temperature": 0.0, "max_completion_length": 12}
    rows = sample(model, tokenizer, ROWS, accept, batch_size=batch_size, **settings)
    assert [row["completion"] for row in rows] == [greedy(model, tokenizer, row["prompt"], 12) for row in ROWS]


def test_rows_are_in_the_data_sets_order(model, tokenizer):
    rows = sample(model, tokenizer, ROWS, accept, **SETTINGS)
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(f"p{i}", j) for i in range(3) for j in range(2)]
    assert [row["prompt"] for row in rows[::2]] == [row["prompt"] for row in ROWS]
    assert all(row["score"] == 1.0 and 1 <= row["length"] <= 6 for row in rows)


def test_the_seed_decides(model, tokenizer):
    def texts(seed):
        return [row["completion"] for row in sample(model, tokenizer, ROWS, accept, seed=seed, **SETTINGS)]

    torch.manual_seed(1)
    first = texts(0)
    torch.manual_seed(2)
    assert texts(0) == first
    assert texts(1) != first


def disturbed(model):
    return (
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def test_evaluating_leaves_no_trace(model, tokenizer):
    def careless(completions, **columns):
        random.random()
        np.random.rand()
        torch.rand(1)
        return [1.0] * len(completions)

    model.train()
    model.model.layers[0].eval()  # a frozen part stays in its own mode
    before = disturbed(model)
    sample(model, tokenizer, ROWS, careless, **SETTINGS)
    assert disturbed(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())

    def wrong_number(completions, **columns):
        return [1.0]

    with pytest.raises(ValueError, match="1 verdicts for"):
        sample(model, tokenizer, ROWS, wrong_number, **SETTINGS)
    assert disturbed(model) == before


def test_the_end_of_an_answer(model, tokenizer):
    end, seen = tokenizer.eos_token_id, []
    with torch.no_grad():  # make the end likely
        model.lm_head.weight[end] *= 0
        model.lm_head.weight[end] += model.lm_head.weight.mean(0) * 8

    def collect(completions, completion_ids, **columns):
        seen.extend(completion_ids)
        return [1.0] * len(completions)

    rows = sample(model, tokenizer, ROWS[:1], collect, k=200, max_completion_length=20, batch_size=200)
    assert {row["truncated"] for row in rows} == {True, False}
    for row, ids in zip(rows, seen, strict=True):
        assert row["length"] == len(ids)
        assert end not in ids[:-1]
        assert row["truncated"] == (ids[-1] != end) == (len(ids) == 20 and ids[-1] != end)
        assert "<|end|>" not in row["completion"]


def test_verifiers_see_the_rows_columns_and_the_completions_as_in_training(model, tokenizer):
    calls = []

    def look(prompts, completions, completion_ids, answer, problem_id, **columns):
        calls.append((prompts, completions, answer, problem_id, columns))
        return [{"score": float(a == "22"), "feedback": f"it was {a}", "kind": "correction"} for a in answer]

    rows = sample(model, tokenizer, ROWS, look, k=1, max_completion_length=3, batch_size=8)
    ((prompts, completions, answer, problem_id, columns),) = calls
    assert answer == ["a longer one", "22", "1"]  # one batch, the longest first
    assert problem_id == ["p1", "p2", "p0"]
    assert prompts == [chat(text) for text in answer]
    assert [c[0]["role"] for c in completions] == ["assistant"] * 3
    assert columns == {}
    assert [(row["score"], row["feedback"], row["kind"]) for row in rows] == [
        (0.0, "it was 1", "correction"), (0.0, "it was a longer one", "correction"), (1.0, "it was 22", "correction"),
    ]  # fmt: skip


def test_text_prompts(model, tokenizer):
    def plain(prompts, completions, **columns):
        assert all(isinstance(text, str) for text in [*prompts, *completions])
        return [1.0] * len(completions)

    rows = sample(model, tokenizer, [{"prompt": "1+1="}, {"prompt": "2"}], plain, **SETTINGS)
    assert [row["problem_id"] for row in rows] == ["0", "0", "1", "1"]
    assert [row["score"] for row in rows] == [1.0] * 4


def test_a_teacher_is_asked_other_messages_and_judged_by_the_rows_own(model, tokenizer):
    told = [chat(f"the answer is {row['answer']}") for row in ROWS]
    asked = []

    def look(prompts, completions, **columns):
        asked.extend(prompts)
        return [1.0] * len(completions)

    settings = {"k": 1, "temperature": 0.0, "max_completion_length": 5, "batch_size": 3}
    teacher = sample(model, tokenizer, ROWS, look, messages=told, **settings)
    policy = sample(model, tokenizer, ROWS, accept, **settings)
    as_rows = sample(model, tokenizer, [{"prompt": m} for m in told], accept, **settings)
    assert sorted(map(str, asked)) == sorted(str(row["prompt"]) for row in ROWS)
    assert [row["completion"] for row in teacher] == [row["completion"] for row in as_rows]
    assert [row["completion"] for row in teacher] != [row["completion"] for row in policy]
    assert [row["prompt"] for row in teacher] == told


def test_a_verifier_that_fails_costs_its_attempts_only(model, tokenizer):
    def fragile(completions, answer, **columns):
        if "22" in answer:
            raise RuntimeError("no such answer")
        return [1.0] * len(completions)

    found = evaluate(model, tokenizer, ROWS, fragile, **SETTINGS)
    assert [row["score"] for row in found.rows] == [1.0, 1.0, 1.0, 1.0, None, None]
    assert found.rows[-1]["kind"] == "error"
    assert found.metrics["unjudged"] == 2
    assert found.metrics["avg@2"] == pytest.approx(2 / 3)
    assert found.metrics["n_problems"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"^k: must be at least 1"),
        ({"batch_size": 0}, r"^batch_size:"),
        ({"max_completion_length": 0}, r"^max_completion_length:"),
        ({"temperature": -1.0}, r"^temperature:"),
        ({"temperature": float("nan")}, r"^temperature:"),
        ({"top_p": 0.0}, r"^top_p:"),
        ({"messages": [chat("1")]}, r"^messages: 1 for 3 rows"),
        ({"dataset": []}, r"^dataset: has no rows"),
        ({"dataset": [{"prompt": "1"}, {"question": "2"}]}, r"^dataset: row 1 has no 'prompt'; it has 'question'"),
        ({"dataset": [ROWS[0], ROWS[1], ROWS[0]]}, r"^problem_id: rows 0 and 2 are both 'p0'"),
    ],
)
def test_bad_arguments_are_named(model, tokenizer, changes, message):
    arguments = {"dataset": ROWS, **SETTINGS, **changes}
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, verifier=accept, **arguments)


def test_chats_need_a_template(model, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"^tokenizer: has no chat template, but the prompt of row 0 is a chat"):
        sample(model, tokenizer, ROWS, accept, **SETTINGS)


def test_importing_evaluation_loads_neither_torch_nor_transformers():
    import subprocess
    import sys

    heavy = {"torch", "transformers", "trl", "datasets"}
    code = f"import sys, errata.evaluation; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("threshold", "average"), [({}, 0.0), ({"threshold": 0.5}, 1.0), ({"threshold": 1.0}, 0.0)])
def test_evaluate_counts_partial_credit_from_the_threshold_on(model, tokenizer, threshold, average):
    def half(completions, **columns):
        return [0.5] * len(completions)

    found = evaluate(model, tokenizer, ROWS[:2], half, k=2, max_completion_length=1, batch_size=4, **threshold)
    assert found.metrics["avg@2"] == average
    assert found.metrics["score"] == 0.5
