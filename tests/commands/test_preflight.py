"""``errata preflight``, and the small one that begins a training run, on rows and a verifier of one's own."""

import json
import re

import pytest
import torch
import yaml
from tests.training.worlds import TOKENIZER, build_model, rows, trainer, weights

from errata.cli import main
from errata.experts import SelfTeacher
from errata.training import preflight
from errata.training.findings import KINDS
from errata.training.preflight import chosen_rows, measure, parting

JUDGE = """
def letters(completions, **_):
    texts = [c[-1]["content"] for c in completions]
    shares = [sum(x.isalpha() for x in t) / max(len(t), 1) for t in texts]
    return [{"score": float(s > 0.5), "feedback": "" if s > 0.5 else f"{s:.2f} are letters", "kind": "trace"} for s in shares]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    model = build_model(len(TOKENIZER))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder / "policy")
    TOKENIZER.save_pretrained(folder / "policy")
    (folder / "judge.py").write_text(JUDGE)
    (folder / "data").mkdir()
    data = [{**row, "hint": "write abc"} for row in rows(8)]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return folder


def recipe(folder, files, **changes):
    settings = {
        "model": str(files / "policy"),
        "dataset_name": str(files / "data"),
        "verifier": [f"{files / 'judge.py'}:letters"],
        "method": "distil",
        "context_template": "{{ prompt }} {{ solution }}{{ feedback }}",
        "correction": "hint",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "critic_max_tokens": 4,
        "max_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "output_dir": str(folder / "run"),
        "seed": 0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return str(path)


def test_rows_and_a_verifier_of_ones_own(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "found.json"
    status = main(["preflight", recipe(tmp_path, files), "--problems", "4", "--k", "3", "--out", str(out)])
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert [p.keys() >= {"plain", "mixed", "shown"} for p in found["problems"]] == [True] * 4
    assert {row["kind"] for row in found["lines"]} >= {"feedback", "reference", "both", "correction", "critique", "own"}
    assert all(re.search(rf"^ +{kind} ", shown, re.MULTILINE) for kind in KINDS)
    assert [c["method"] for c in found["conclusions"]] == ["distil", "grpo", "sft", "sdpo", "opsd", "srpo", "drift"]
    assert status == int(found["conclusions"][0]["answer"] == "no")
    assert "4 problems, 3 attempts each" in shown
    # Each part is announced with the time, since with a large model one may take minutes.
    begun = re.findall(r"^ +\d+ s  (\w+)", shown, re.MULTILINE)
    assert [word for word in begun if word in ("answers", "critiques")] == ["answers", "critiques", *["answers"] * 6]
    assert "…" not in shown  # in 80 columns nothing is cut
    assert re.search(r"answers with the reference, 4 problems \(3 of 6 contexts\)", shown)
    for row in found["lines"]:
        assert 0 <= row["pairs"]["lowers"] <= row["pairs"]["n"] <= row["n"] <= 4


def test_a_context_that_another_kind_gives_too_is_sampled_once(tmp_path, monkeypatch):
    """The method's own choice is the reference here; measured by itself it is the same, to the digit."""
    run = trainer(tmp_path, train_rows=8, method_args={"sources": ["reference"], "with_feedback": False})
    data, said = chosen_rows(list(run.train_dataset), 8, 0), []
    both = measure(run, data, 2, ("reference", "own"), said.append)
    assert [p.shown["own"] for p in both.problems] == [p.shown["reference"] for p in both.problems]
    assert both.pairs["own"] == both.pairs["reference"]
    assert [line.split(",")[0] for line in said] == ["answers without a context", "answers with the reference"]
    alone = measure(run, data, 2, ("own",))
    assert ([p.shown["own"] for p in alone.problems], alone.pairs["own"]) == (
        [p.shown["own"] for p in both.problems],
        both.pairs["own"],
    )


def test_training_begins_with_a_small_one_that_changes_nothing(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = []
    for folder, problems in (("a", 8), ("b", 0)):
        assert main(["train", recipe(tmp_path / folder, files, preflight=problems)]) == 0
        shown = capsys.readouterr().out
        assert ("preflight, 8 problems x 4 in" in shown) == (problems > 0)
        row = json.loads((tmp_path / folder / "run" / "metrics.jsonl").read_text())
        found.append({k: v for k, v in row.items() if k != "step_time"})
    assert found[0] == found[1]


def test_with_guard_stop_a_useless_teacher_ends_the_run_before_it(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (files / "never.py").write_text(
        'def never(completions, **_):\n    return [{"score": 0.0, "feedback": "no"}] * len(completions)\n'
    )
    # Its teacher is its own weights, told only "no": no answer is right, and the references are not said.
    words = {"verifier": [f"{files / 'never.py'}:never"], "method_args": {"sources": ["feedback"]}, "guard": "stop"}
    monkeypatch.setattr(preflight, "parting", lambda wrong, rights: None)
    assert main(["train", recipe(tmp_path, files, **words, correction=None)]) == 2
    assert "preflight: distil: nothing to learn from; its teacher solves 0.000" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_next_tokens_are_the_models_own(tmp_path):
    """Oracle: a plain forward of each sequence by itself."""
    run = trainer(tmp_path, temperature=0.7)
    prompts, befores = [[2, 10, 11, 1, 3], [2, 12, 3]], [[20, 21, 22], []]
    found = preflight._next(run, SelfTeacher(run.model, "live"), prompts, befores)
    for logp, prompt, before in zip(found, prompts, befores, strict=True):
        with torch.no_grad():
            logits = run.model(torch.tensor([[*prompt, *before]])).logits[0, -1]
        assert torch.allclose(logp, (logits / 0.7).log_softmax(-1), atol=1e-5)


def test_a_teacher_with_other_weights_is_compared_with_the_student(tmp_path):
    """A frozen teacher, of a student whose weights are then made another's: the two disagree only because of that."""
    run = trainer(tmp_path, teacher="frozen", train_rows=8)
    before = weights(run.model)
    found = measure(run, chosen_rows(list(run.train_dataset), 8, 0), 2, ("own",))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(run.model).values(), strict=True))
    assert (len(found.problems), run.evaluation_due, list(found.pairs)) == (8, False, ["own"])
    assert found.pairs["own"].n > 0


@pytest.mark.parametrize(
    ("wrong", "rights", "place"),
    [
        ([1, 2, 3, 9], [[1, 2, 4, 9]], ([1, 2], 3, 4)),
        ([1, 2, 3, 9], [[5, 2], [1, 2, 3, 4, 9]], ([1, 2, 3], 9, 4)),  # it ends too early
        ([1, 2], [[1, 2]], None),
        ([1, 2], [], None),
    ],
)
def test_where_a_wrong_attempt_parts_from_a_right_one(wrong, rights, place):
    assert parting(wrong, rights) == place


def test_rows_are_drawn_by_the_seed_and_each_problem_once():
    data = [{"problem_id": str(i % 6)} for i in range(12)]
    assert [row["problem_id"] for row in chosen_rows(data, 3, 0)] == [
        row["problem_id"] for row in chosen_rows(data, 3, 0)
    ]
    assert [row["problem_id"] for row in chosen_rows(data, 99, 0)] == list("012345")
