"""Rollouts of several turns through TRL's tools and environments: real generation, real calls, nothing learned from a tool."""

import json

import pytest
import torch
import yaml
from tests.training import tool_world as world
from tests.training.worlds import settings, weights

from errata import methods
from errata.cli import main
from errata.recipe.config import ErrataConfig
from errata.training import loss, teacher_pass
from errata.training.trainer import ErrataTrainer

TOKENIZER = world.tool_tokenizer()
TOOL_SAID = "<|user|><tool_response>{}</tool_response><|end|><|assistant|>"
USER = {}
exec(world.USER_CODE, USER)


def tools_trainer(folder, *, verifiers=(USER["one_more"],), eval_dataset=None, keep=None, method_args=None, **changes):
    given = {k: changes.pop(k) for k in ("tools", "environment_factory", "context_methods") if k in changes}
    given["train_dataset"] = changes.pop("train_dataset", None) or world.tool_rows()
    config = ErrataConfig(
        **settings(
            folder,
            **{
                "max_completion_length": 80,
                "max_steps": 1,
                "context_template": "{{ prompt }} {{ solution }}{{ feedback }}",
                "eval_k": 4,
                "eval_batch_size": 8,
                "rollouts_saved": 8,
                "learning_rate": 1e-4,
                "temperature": 0.5,
                **changes,
            },
        )
    )
    return ErrataTrainer(
        world.tool_policy(),
        list(verifiers),
        config,
        method=methods.get("distil", **{"sources": ["feedback"], **(method_args or {})}),
        eval_dataset=eval_dataset,
        processing_class=TOKENIZER,
        run=(lambda stem, row: None) if keep is None else (lambda stem, row: keep.append((stem, row))),
        **given,
    )


def spied(t):
    """What ``on_rollouts`` returned for each generation batch."""
    batches, original = [], t.on_rollouts

    def spy(rows, tokens):
        batches.append(original(rows, tokens))
        return batches[-1]

    t.on_rollouts = spy
    return batches


@pytest.fixture(params=["tools", "environment"])
def given(request):
    return {"tools": [USER["add"]]} if request.param == "tools" else {"environment_factory": USER["Adder"]}


def test_the_teacher_sees_the_same_turns(tmp_path, monkeypatch, given):
    asked = []

    def recorded(prompts, completions):
        asked.append((prompts, completions))
        return original(prompts, completions)

    original = teacher_pass.teacher_sequences
    monkeypatch.setattr(teacher_pass, "teacher_sequences", recorded)
    t = tools_trainer(tmp_path, **given)
    batches = spied(t)
    t.train()
    (batch,), ((prompts, completions),) = batches, asked
    rollouts, contexts = batch.rollouts, batch.contexts
    told = [i for i, c in enumerate(contexts) if c.is_informative]
    assert 0 < len(told) < 8
    tokens, lengths = batch.tokens, batch.tokens.lengths
    assert completions == [tokens.completion_ids[i, : lengths[i]].tolist() for i in told]
    go = "" if "tools" in given else world.SHOWN
    for i, prompt, completion in zip(told, prompts, completions, strict=True):
        a, b = map(int, rollouts[i].problem_id.split("+"))
        after = "" if "tools" in given else f" after [[{a}, {b}]]"
        problem = f"<|system|>add <|end|><|user|>{a}+{b}{go} {a + b + 1} not {a + b}{after}<|end|><|assistant|>"
        assert TOKENIZER.decode(prompt) == problem
        assert TOOL_SAID.format(a + b) in TOKENIZER.decode(completion)


def test_what_a_tool_said_is_attended_to_and_not_learned_from(tmp_path, monkeypatch):
    states = []

    def watched(student, *args, **kwargs):
        student.hidden.retain_grad()
        states.append(student.hidden)
        return original(student, *args, **kwargs)

    original = loss.fused_loss
    monkeypatch.setattr(loss, "fused_loss", watched)
    kept = []
    t = tools_trainer(
        tmp_path,
        tools=[USER["add"]],
        keep=kept,
        method_args={"cost": "ce", "baseline": "none", "discount": 1.0, "credit_limit": None},
    )
    batches = spied(t)
    t.train()
    (batch,), (hidden,) = batches, states
    generated = batch.tokens.mask
    tool = batch.tokens.completion_mask.bool() & ~generated
    for i, rollout in enumerate(t.generation.rollouts):
        a, b = map(int, rollout.problem_id.split("+"))
        assert TOKENIZER.decode(batch.tokens.completion_ids[i][tool[i]]) == TOOL_SAID.format(a + b)
        assert rollout.length == int(generated[i].sum())
    # As targets the tool's tokens move nothing: no state that predicts one has a gradient; those of the student's own do,
    # but for the few where student and teacher are certain to the last bit.
    with_teacher = batch.teacher.has_teacher
    assert with_teacher.any()
    assert float(hidden.grad[tool].abs().sum()) == 0.0
    assert float((hidden.grad.abs().sum(-1) > 0)[generated & with_teacher[:, None]].float().mean()) > 0.8
    # Credit runs over the student's own tokens, from the call on across the tool's answer to the end.
    rows = [row for stem, row in kept if stem == "rollouts" and row["context"]["prompt"]]
    assert len(rows) == int(with_teacher.sum())
    for row in rows:
        own = [k for k, g in enumerate(row["generated"]) if g]
        assert 0 < len(own) < len(row["generated"])
        for name, values in row["signals"].items():
            assert all(v == 0.0 for v, g in zip(values, row["generated"], strict=True) if not g), name
        cost = [row["signals"]["divergence"][k] for k in own]
        advantage = [row["signals"]["advantage"][k] for k in own]
        assert advantage == pytest.approx([-sum(cost[k + 1 :]) for k in range(len(cost))], abs=1e-2)


def test_the_record_shows_the_turns(tmp_path):
    kept = []
    tools_trainer(tmp_path, tools=[USER["add"]], keep=kept).train()
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert len(rows) == 8
    for row in json.loads(json.dumps(rows)):
        a, b = map(int, row["problem_id"].split("+"))
        call, said, answer = row["turns"]
        assert call["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}]
        assert said == {"role": "tool", "name": "add", "content": str(a + b)}
        assert row["completion"] == f'add({{"a": {a}, "b": {b}}})\n-> {a + b}\n{answer["content"]}'
        assert row["reward"] == float(answer["content"] == str(a + b + 1))
        assert row["kind"] == "tool"
        assert [t for t, g in zip(row["tokens"], row["generated"], strict=True) if not g][1] == "<tool_response>"


def test_a_sibling_is_shown_with_its_calls(tmp_path):
    kept = []
    tools_trainer(tmp_path, tools=[USER["add"]], keep=kept, method_args={"sources": ["sibling"]}).train()
    shown = [
        row for stem, row in kept if stem == "rollouts" and row["context"]["kind"] == "sibling" and not row["reward"]
    ]
    assert shown
    for row in shown:
        a, b = map(int, row["problem_id"].split("+"))
        right = f'{a}+{b} add({{"a": {a}, "b": {b}}})\n-> {a + b}\n{a + b + 1}'
        assert row["context"]["prompt"][-1]["content"] == right


def test_an_evaluation_calls_tools_and_leaves_no_trace(tmp_path, given):
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    evaluated = tools_trainer(tmp_path / "a", eval_dataset=world.tool_rows(), max_steps=2, **given, **evaluating)
    evaluated.train()
    plain = tools_trainer(tmp_path / "b", max_steps=2, **given)
    plain.train()
    for a, b in zip(weights(evaluated.model).values(), weights(plain.model).values(), strict=True):
        assert torch.equal(a, b)
    logs = [log for log in evaluated.state.log_history if "eval_avg@4" in log]
    assert len(logs) == 3
    assert 0.1 < logs[0]["eval_avg@4"] < 0.9  # by half right; without its tool it never is
    # The teacher is evaluated as the policy is; this one has never learned to read what it is shown.
    assert [log["eval_teacher_accuracy"] for log in logs] == [0.0, 0.0, 0.0]
    assert all(log["eval_teacher_lead"] == -log["eval_student_accuracy"] < 0 for log in logs)
    rollouts = evaluated.evaluator.last_rollouts
    assert [len(r.turns) for r in rollouts] == [3] * 16
    if "environment_factory" in given:
        told = [r for r in rollouts if r.verdict.feedback]
        assert told
        for r in told:
            assert r.verdict.feedback.endswith(f" after [[{r.problem_id[0]}, {r.problem_id[2]}]]")
            assert r.prompt[-1]["content"] == r.problem_id + world.SHOWN


def test_environments_are_made_once_and_reset_often(tmp_path):
    class Counted(USER["Adder"]):
        made = 0

    tools_trainer(
        tmp_path, environment_factory=Counted, eval_dataset=world.tool_rows(), eval_on_start=True, max_steps=3
    ).train()
    assert Counted.made == 8


def test_an_environment_may_judge_by_itself_in_words(tmp_path):
    kept = []
    tools_trainer(tmp_path, verifiers=(), environment_factory=USER["Judging"], keep=kept).train()
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert {(row["reward"], row["feedback"], row["kind"]) for row in rows} == {(0.0, "1 calls", "tool")}
    assert all(row["context"]["prompt"][-1]["content"].endswith(" go 1 calls") for row in rows)


def test_a_critic_reads_the_calls_and_makes_none(tmp_path):
    kept = []
    template = "{{ problem }}: {{ attempt }}"
    t = tools_trainer(
        tmp_path, tools=[USER["add"]], keep=kept, critic="policy", critic_template=template, critic_max_tokens=70
    )
    asked, original = [], t.write

    def write(prompts, **kwargs):
        asked.append(prompts)
        return original(prompts, **kwargs)

    t.write = write
    t.train()
    failed = [r for r in t.generation.rollouts if r.reward == 0]
    assert asked == [[[{"role": "user", "content": f"{r.problem_id}: {r.completion}"}] for r in failed]]
    assert all("critique_tokens" in r.verdict.info for r in failed)


# -- recipes --


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A policy, data and a user's code, as a recipe names them."""
    folder = tmp_path_factory.mktemp("files")
    world.tool_policy().save_pretrained(folder / "policy")
    TOKENIZER.save_pretrained(folder / "policy")
    (folder / "data").mkdir()
    for split, rows in (("train", range(2)), ("test", range(2, 4))):
        world.tool_rows().select(rows).to_json(folder / "data" / f"{split}.jsonl")
    (folder / "mine.py").write_text(world.USER_CODE)
    return folder


def recipe(folder, files, **changes):
    base = {
        **settings(folder / "run", learning_rate=1e-4, temperature=0.5),
        "model": str(files / "policy"),
        "dataset_name": str(files / "data"),
        "verifier": [f"{files / 'mine.py'}:one_more"],
        "method": "distil",
        "method_args": {"sources": ["feedback"]},
        "context_template": "{{ prompt }} {{ feedback }}",
        "max_completion_length": 80,
        "max_steps": 2,
        "preflight": 0,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_k": 2,
        "rollouts_saved": 8,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**base, **changes}.items() if v is not None}))
    return str(path)


@pytest.mark.parametrize("key", ["tools", "environment"])
def test_a_recipe_names_tools_or_an_environment(tmp_path, files, capsys, monkeypatch, key):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    mine = files / "mine.py"
    named = {"tools": [f"{mine}:add"]} if key == "tools" else {"environment": f"{mine}:Adder"}
    assert main(["train", recipe(tmp_path, files, **named, save_strategy="steps", save_steps=2)]) == 0
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert {len(row["turns"]) for row in rows} == {3}
    failed = [row for row in rows if row["reward"] == 0]
    assert failed
    for row in failed:
        a, b = map(int, row["problem_id"].split("+"))
        told = (
            f"{a}+{b} {a + b + 1} not {a + b}"
            if key == "tools"
            else f"{a}+{b} go {a + b + 1} not {a + b} after [[{a}, {b}]]"
        )
        assert row["context"]["prompt"][-1]["content"] == told
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["tools/call_frequency"] for row in metrics] == [1.0, 1.0]
    (evaluation,) = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert 0 < evaluation["avg@2"] < 1
    # Evaluated from outside it answers as in its run: the same turns, rows, verifier and numbers.
    out = tmp_path / "out.jsonl"
    capsys.readouterr()
    assert main(["eval", str(run), "--k", "2", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"] == str(files / "data")
    assert {k: v for k, v in found.items() if k in evaluation} == {
        k: v for k, v in evaluation.items() if k not in ("step", "task") and not k.startswith(("teacher_", "student_"))
    }
    assert (found["sampling"]["temperature"], found["sampling"]["seed"]) == (0.5, 3)
    attempts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["problem_id"], row["sample"]) for row in attempts] == [(i, j) for i in ("2+5", "0+6") for j in (0, 1)]
    assert {len(row["turns"]) for row in attempts} == {3}


def test_a_run_on_rows_of_its_own_is_evaluated_on_them(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert main(["train", recipe(tmp_path, files, save_strategy="steps", save_steps=2)]) == 0
    (evaluation,) = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--k", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_problems"], found["avg@2"], found["length"]) == (2, evaluation["avg@2"], evaluation["length"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": ["nowhere.py:add"]}, "tools: no file 'nowhere.py'"),
        ({"tools": ["MINE:ad"]}, "has no 'ad'; did you mean 'add'?"),
        ({"tools": ["MINE:one_more"]}, "one_more': cannot be described to the model"),
        ({"environment": "MINE:add"}, "must be a class with a method reset"),
        ({"tools": ["MINE:add"], "model": "house"}, "chat template"),
    ],
)
def test_bad_tools_are_one_line_before_any_compute(tmp_path, files, capsys, monkeypatch, changes, message):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    text = json.dumps(changes).replace("MINE", str(files / "mine.py"))
    assert main(["train", recipe(tmp_path, files, **json.loads(text))]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
