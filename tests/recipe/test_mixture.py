"""Several tasks in one run: rows by weight, columns of all, verifiers, and bad entries."""

from collections import Counter

import pytest
from datasets import Dataset

from errata import methods, tasks
from errata.recipe import mixture
from errata.recipe.build import context_methods_of, method_of
from errata.recipe.read import recipe_of
from errata.recipe.rows import rows_of
from errata.recipe.verifiers import verifiers_of

BASE = {"model": "house", "use_cpu": True, "per_device_train_batch_size": 8, "num_generations": 4}


def recipe(**changes):
    return recipe_of({**BASE, **changes})


@pytest.fixture
def two(monkeypatch):
    """Tasks of 30 and 5 rows; each has a column that the other lacks."""

    def load(name, *, path=None, split="train", strict=True):
        n = {"big": 30, "small": 5}[name]
        own = {"big": {"answer": "7"}, "small": {"tests": ["t"]}}[name]
        return Dataset.from_list(
            [{"problem_id": f"{name}/{split}/{i}", "prompt": f"{name} {i}", "task": name, **own} for i in range(n)]
        )

    monkeypatch.setattr(tasks, "load", load)
    monkeypatch.setattr(mixture.tasks, "load", load)
    monkeypatch.setattr(mixture.tasks, "environment", lambda name: None)


def test_an_epoch_holds_every_row_in_the_shares_of_the_weights(two):
    rows = rows_of(recipe(tasks=[{"name": "big", "weight": 3}, "small"]), split="train", task=None)
    names = Counter(rows["task"])
    assert len(set(rows["problem_id"])) == 35
    assert names["small"] / names.total() == pytest.approx(0.25, abs=0.12)
    assert rows.filter(lambda row: row["task"] == "small")[0]["answer"] is None
    assert rows.filter(lambda row: row["task"] == "big")[0]["answer"] == "7"
    again = rows_of(recipe(tasks=[{"name": "big", "weight": 3}, "small"]), split="train", task=None)
    assert rows["problem_id"][:] == again["problem_id"][:]


def test_an_evaluation_has_the_first_rows_of_each_task_once(two):
    rows = rows_of(recipe(tasks={"big": 3, "small": 1}, eval_problems=2), split="test", task=None)
    assert rows["problem_id"][:] == ["big/test/0", "big/test/1", "small/test/0", "small/test/1"]


def test_each_task_is_judged_by_its_own_verifier():
    (judge,) = verifiers_of(recipe(tasks=["rulebook/new-rule", {"name": "math"}]))
    assert list(judge.verifiers) == ["rulebook/new-rule", "math"]
    verdicts = judge(
        prompts=["p", "p"],
        completions=["\\boxed{7}", "\\boxed{8}"],
        task=["math", "math"],
        answer=["7", "7"],
        problem_id=["a", "b"],
    )
    assert [v.score for v in verdicts] == [1.0, 0.0]


def test_context_settings_differ_by_task():
    found = context_methods_of(recipe(tasks=["math"], context_args={"math": {"sources": ["reference"]}}))
    assert found["math"].sources == ("reference",)
    assert found["math"].settings() == {**found["math"].settings(), "sources": ("reference",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks: must be a list of tasks"),
        ({"tasks": "math"}, "tasks: must be a list of tasks"),
        ({"tasks": [{"weight": 2}]}, "tasks, entry 0: must have a name"),
        ({"tasks": [{"name": "math", "wieght": 2}]}, "tasks, entry 0: unknown key 'wieght', did you mean 'weight'?"),
        ({"tasks": [{"name": "math", "weight": 0}]}, "tasks, entry 0, weight: must be"),
        ({"tasks": ["math", "math"]}, "tasks: math is named twice"),
        ({"tasks": ["math"], "task": "math"}, "tasks: task names another one"),
        ({"tasks": ["maths"]}, "no task 'maths'; did you mean 'math'?"),
        ({"tasks": ["math"], "verifier": ["m.py:f"]}, "verifier: verifiers names them"),
        ({"verifiers": {"math": 3}, "task": "math"}, "verifiers.math: must be file.py:function"),
    ],
)
def test_bad_entries_are_one_line(changes, message):
    with pytest.raises(ValueError, match=r".*") as error:
        verifiers_of(recipe(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("args", "method", "message"),
    [
        ({"math": {"temperature": 1}}, "distil", "'temperature' cannot differ between tasks"),
        ({"math": 3}, "distil", "context_args.math: must be a mapping"),
        ({"math": {"sources": ["sibling"]}}, "grpo", "grpo has no setting 'sources'"),
    ],
)
def test_bad_context_settings_are_one_line(args, method, message):
    with pytest.raises(ValueError, match=r".*") as error:
        context_methods_of(recipe(task="math", method=method, context_args=args))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"tasks": ["math", {"name": "programs"}]}, ("math", "programs")),
        ({"tasks": ["math"]}, ()),
        ({"task": "math"}, ()),
        ({"task": "math", "environment": {"a": "m.py:A", "b": "m.py:B"}}, ("a", "b")),
        ({"tasks": ["math", "programs"], "method_args": {"tasks": []}}, ()),
        ({"tasks": ["math", "programs"], "method_args": {"tasks": ["math"]}}, ("math",)),
    ],
)
def test_drift_has_a_stage_for_each_of_a_recipes_tasks(changes, tasks):
    assert method_of(recipe(method="drift", **changes)).memory().tasks == tasks


def test_methods_without_stages_are_not_told_of_tasks():
    assert method_of(recipe(method="distil", tasks=["math", "programs"])).settings() == methods.get("distil").settings()
