"""Recipes: what is read, and the one clear line for what cannot be."""

import logging

import pytest
from datasets import Dataset

from errata.recipe import models, verifiers
from errata.recipe import read as reading
from errata.recipe.read import read
from errata.recipe.rows import check_template_tasks, checked


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_overrides_win_and_reach_into_mappings(tmp_path):
    path = written(
        tmp_path,
        "model: house\ntask: rulebook/sharpen\nmethod_args: {credit: mean, discount: 0.5}\nlearning_rate: 1e-3\n",
    )
    found = read(path, ["--method_args.credit", "sum", "--learning_rate", "2e-4", "--max_steps=7"]).config
    assert found.method_args == {"credit": "sum", "discount": 0.5}
    assert (found.learning_rate, found.max_steps, found.model) == (2e-4, 7, "house")
    found = read(path, ["--method_args", "{credit: sum, cost: ce}", "--expert_args", '{"gives": "samples"}']).config
    assert found.method_args == {"credit": "sum", "discount": 0.5, "cost": "ce"}
    assert found.expert_args == {"gives": "samples"}


def test_another_method_than_the_recipes_leaves_its_settings_behind(tmp_path):
    path = written(
        tmp_path, "model: house\ntask: rulebook/sharpen\nmethod: distil\nmethod_args: {future_weight: 0.3}\n"
    )
    assert read(path, ["--method", "drift"]).config.method_args is None
    assert read(path, ["--method=drift", "--method_args.warmup_steps", "5"]).config.method_args == {"warmup_steps": 5}
    assert read(path, ["--method", "distil"]).config.method_args == {"future_weight": 0.3}


def test_a_trl_recipe_is_read_unchanged(tmp_path):
    path = written(
        tmp_path,
        "model_name_or_path: Qwen/Qwen3-8B\ndataset_name: trl-lib/x\nreward_funcs: [think_format_reward]\nlearning_rate: 1e-5\n"
        "beta: 0.04\nnum_generations: 4\nper_device_train_batch_size: 4\nuse_peft: true\nlora_r: 8\nmethod: grpo\n",
    )
    found = read(path)
    assert found.config.model == "Qwen/Qwen3-8B"
    assert (found.config.learning_rate, found.config.beta, found.model.lora_r) == (1e-5, 0.04, 8)
    assert verifiers.verifiers_of(found)[0].__name__ == "think_format_reward"


@pytest.mark.parametrize(
    ("written_as", "found"),
    [
        ("house", "house"),
        ("'{{ prompt }} {{ feedback }}'", "{{ prompt }} {{ feedback }}"),
        ("'{% if feedback %}{{ feedback }}{% endif %}'", "{% if feedback %}{{ feedback }}{% endif %}"),
        ("{rulebook: house, math: my.jinja}", {"rulebook": "house", "math": "my.jinja"}),
    ],
)
def test_a_context_template_is_one_or_one_for_each_task(tmp_path, written_as, found):
    path = written(tmp_path, f"model: house\ncontext_template: {written_as}\n")
    assert read(path).config.context_template == found
    plain = written(tmp_path, "model: house\n")
    assert read(plain, ["--context_template", written_as.strip("'")]).config.context_template == found
    assert read(plain).config.context_template is None  # then it is the method's own


def test_strict_is_read(tmp_path):
    path = written(tmp_path, "model: house\nstrict: false\n")
    assert read(path).config.strict is False
    assert read(path, ["--strict", "true"]).config.strict is True


def test_a_context_template_of_an_unknown_task_is_named(tmp_path):
    path = written(tmp_path, "model: house\ncontext_template: {rulebok: house}\n")
    rows = Dataset.from_list([{"prompt": "a", "task": "mine/own"}])
    with pytest.raises(ValueError, match="context_template: no task 'rulebok'"):
        check_template_tasks(read(path), rows)
    for name in ("rulebook", "rulebook/sharpen", "mine", "mine/own"):
        check_template_tasks(read(path, ["--context_template", f"{{{name}: house}}"]), rows)


def test_on_gpu_is_left_out_without_one(tmp_path, monkeypatch):
    path = written(tmp_path, "model: house\ntask: t\non_gpu: {model: Qwen/Qwen3-8B}\n")
    monkeypatch.setattr(reading.torch.cuda, "is_available", lambda: False)
    assert read(path).config.model == "house"
    monkeypatch.setattr(reading.torch.cuda, "is_available", lambda: True)
    assert reading.load_mapping(path)["on_gpu"] == {"model": "Qwen/Qwen3-8B"}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("model: house\n", ["--method_args", "mean"], "--method_args: must be a mapping"),
        ("model: house\n", ["--method_args.credit", "{"], "--method_args.credit: not YAML"),
        ("modle: house\n", [], "modle: unknown argument, did you mean 'model'"),
        ("model: house\n", ["--lerning_rate", "1"], "did you mean 'learning_rate'"),
        ("model: house\n", ["--learning_rate", "fast"], "learning_rate.*fast"),
        ("model: [house\n", [], "not YAML.*line"),
        ("- model\n", [], "must be a mapping"),
        ("task: rulebook/sharpen\n", [], "model: missing"),
        ("model: house\ncontext_template: [house]\n", [], "context_template: must be a template, or a mapping"),
        ("model: house\ncontext_template: {a: 3}\n", [], "context_template: must be a template, or a mapping"),
        ("model: house\nteacher: wise\n", [], "teacher: 'wise' is none of"),
        ("model: house\non_gpu: {modle: x}\n", [], "modle: unknown argument"),
        (
            "model: house\nnum_generations: 3\nper_device_train_batch_size: 8\n",
            [],
            r"generation_batch_size \(8\) must be divisible.*\(3\)",
        ),
    ],
)
def test_bad_recipes_say_so_in_one_line(tmp_path, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, text), overrides)


def test_a_missing_recipe():
    with pytest.raises(ValueError, match="no such recipe"):
        read("nowhere.yaml")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        ([{"question": "2+2"}], "no column 'prompt'.*question"),
        ([{"prompt": "a"}, {"prompt": ""}], "row 1, column 'prompt'"),
        ([{"prompt": [{"role": "user"}]}], "row 0, column 'prompt'"),
        ([{"prompt": "a", "problem_id": "x"}, {"prompt": "b", "problem_id": None}], "row 1, column 'problem_id'"),
        (
            [{"prompt": p, "problem_id": i} for p, i in [("a", "x"), ("a", "x"), ("b", "x")]],
            "row 1, column 'problem_id': 'x' is row 0's, too",
        ),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        checked(Dataset.from_list(rows), "data")


def test_bad_rows_are_left_out_and_counted_where_not_strict(caplog):
    found = [("a", "x"), ("", "y"), ("b", "x"), ("c", None), ("d", "z"), ("a", "x")]
    rows = Dataset.from_list([{"prompt": prompt, "problem_id": name} for prompt, name in found])
    with pytest.raises(ValueError, match=r"^data: row 1, column 'prompt': .* \(strict: false leaves such rows out\)$"):
        checked(rows, "data")
    with caplog.at_level(logging.WARNING):
        assert checked(rows, "data", strict=False)["prompt"] == ["a", "d"]
    assert "data: left out 4 of 6 rows; the first: row 1, column 'prompt'" in caplog.text
    unnamed = Dataset.from_list([{"prompt": ""}, {"prompt": "a"}])
    assert len(checked(unnamed, "data", strict=False)["problem_id"]) == 1
    with pytest.raises(ValueError, match="data: no usable rows; the first problem: row 0, column 'prompt'"):
        checked(Dataset.from_list([{"prompt": ""}]), "data", strict=False)


def test_problem_ids_are_derived_stably():
    one = checked(Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]), "data")["problem_id"]
    other = checked(Dataset.from_list([{"prompt": "b"}, {"prompt": "a"}]), "data")["problem_id"]
    assert list(one) == list(reversed(other))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c"])
def test_a_model_path_that_does_not_exist(name):
    with pytest.raises(ValueError, match="model: no directory"):
        models.model_path(name)


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"neither a config.json nor a finished checkpoint"):
        models.model_path(str(tmp_path))
