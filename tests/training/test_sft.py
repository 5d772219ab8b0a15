"""SFT through the trainer against plain cross-entropy on prompt + reference + end of turn."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, history, rows, trainer, weights

from errata import methods
from errata.cli import main

END = TOKENIZER.eos_token_id


def example(row):
    """Ids of the prompt as the policy sees it, and of the reference with the end of the turn."""
    prompt = TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    return prompt, [*TOKENIZER(row["reference"], add_special_tokens=False)["input_ids"], END]


def cross_entropy(model, problems):
    """Mean over all target tokens of the given rows: a loop of single sequences."""
    total, count = torch.zeros(()), 0
    for row in problems:
        prompt, target = example(row)
        logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(target), reduction="sum")
        count += len(target)
    return total / count


def learned_from(run):
    by_id = {row["problem_id"]: row for row in rows()}
    return [by_id[r.problem_id] for r in run.generation.rollouts]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_and_gradient_are_plain_cross_entropy(tmp_path, temperature, monkeypatch):
    def generate(*args, **kwargs):
        raise AssertionError("nothing is to be sampled")

    model = build_model(len(TOKENIZER))
    monkeypatch.setattr(type(model), "generate", generate)
    run = trainer(
        tmp_path, "sft", model=model, max_steps=1, learning_rate=0.0, max_grad_norm=1e9, temperature=temperature
    )
    run.train()
    plain = build_model(len(TOKENIZER))
    expected = cross_entropy(plain, learned_from(run))
    expected.backward()
    norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
    ((loss, grad_norm),) = history(run, "loss", "grad_norm")
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert grad_norm == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 16},
    ],
)
def test_accumulation_changes_nothing(tmp_path, cut):
    run = trainer(tmp_path, "sft", max_steps=1, learning_rate=0.0, **cut)
    run.train()
    ((loss,),) = history(run, "loss")
    expected = cross_entropy(build_model(len(TOKENIZER)), learned_from(run)).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_second_pass_over_a_batch_has_no_ratio(tmp_path):
    """With sampled completions a second pass would multiply each token by how far the policy has moved."""
    run = trainer(tmp_path, "sft", max_steps=2, num_iterations=2, learning_rate=0.1, optim="sgd", max_grad_norm=1e9)
    run.train()
    plain = build_model(len(TOKENIZER))
    losses = []
    for _ in range(2):
        plain.zero_grad()
        loss = cross_entropy(plain, learned_from(run))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in plain.parameters():
                p -= 0.1 * p.grad
    assert [x for (x,) in history(run, "loss")] == pytest.approx(losses, rel=1e-4)
    for name, p in weights(run.model).items():
        torch.testing.assert_close(p, dict(plain.named_parameters())[name].detach(), atol=1e-5, rtol=1e-4)


def test_it_learns_the_references_and_evaluations_still_sample(tmp_path):
    kept = []
    run = trainer(tmp_path, "sft", max_steps=40, learning_rate=1e-2, eval_rows=4, keep=kept, eval_temperature=0.0)
    run.train()
    losses = [x for (x,) in history(run, "loss")]
    assert losses[-1] < 0.3 * losses[0]
    shown = [row for stem, row in kept if stem == "rollouts"][-1]
    assert shown["completion"] in {row["reference"] for row in rows()}
    assert shown["context"]["kind"] == "none"
    run.evaluate()
    answers = {r.completion for r in run.evaluator.last_rollouts}
    assert answers <= {"abc", "abca", "abcab"}


def test_a_reference_that_is_too_long_is_cut_and_has_no_end(tmp_path):
    run = trainer(tmp_path, "sft", max_steps=1, max_completion_length=4)
    run.train()
    tokens = run.generation.tokens
    for row, ids, length in zip(learned_from(run), tokens.completion_ids.tolist(), tokens.lengths, strict=True):
        assert ids[:length] == example(row)[1][:4]


def test_a_row_without_a_reference_is_refused_by_name(tmp_path, monkeypatch):
    bad = rows().to_list()
    bad[3]["reference"] = ""
    from datasets import Dataset

    monkeypatch.setattr("tests.training.worlds.rows", lambda n=8: Dataset.from_list(bad))
    with pytest.raises(ValueError, match=r"reference: SFT learns from it, and row 3 \(p3\) has none"):
        trainer(tmp_path, "sft")
    none = Dataset.from_list(bad).remove_columns("reference")
    monkeypatch.setattr("tests.training.worlds.rows", lambda n=8: none)
    with pytest.raises(ValueError, match=r"reference: SFT learns from it, and row 0 \(p0\) has none"):
        trainer(tmp_path, "sft")


def test_strict_false_leaves_out_rows_without_a_reference(tmp_path, capsys, caplog):
    data = tmp_path / "rows"
    data.mkdir()
    problems = [("a", "7a+3=?", "7a+3=0"), ("b", "8a+3=?", None), ("c", "9a+3=?", "9a+3=2")]
    lines = [
        json.dumps({"problem_id": name, "prompt": [{"role": "user", "content": asked}], "reference": reference})
        for name, asked, reference in problems
    ]
    (data / "train.jsonl").write_text("\n".join(lines))
    check = tmp_path / "check.py"
    check.write_text("def judge(completions, reference, **kw):\n    return [1.0] * len(completions)\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: house\nmethod: sft\ndataset_name: {data}\nverifier: ['{check}:judge']\nmax_steps: 1\nuse_cpu: true\n"
        "per_device_train_batch_size: 4\nnum_generations: 2\nsave_strategy: 'no'\neval_strategy: 'no'\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    assert main(["train", str(recipe)]) == 2
    assert "reference: SFT learns from it, and row 1 (b) has none" in capsys.readouterr().err
    assert main(["train", str(recipe), "--strict", "false"]) == 0
    assert "left out 1 of 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0.1}, "beta: the loss of SFT is not TRL's"),
        ({"loss_type": "cispo"}, "loss_type: the loss of SFT is not TRL's"),
    ],
)
def test_settings_it_has_no_use_for_are_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, "sft", **setting)


def test_it_has_no_teacher():
    assert set(methods.get("sft").settings()) == {"success_threshold"}
