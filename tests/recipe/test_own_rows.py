"""Rows of one's own: files, folders, saved sets, mixtures; what exists here is never looked for on the hub."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from errata.recipe.own_rows import mapped, read_rows
from errata.recipe.read import read, recipe_of
from errata.recipe.rows import rows_of
from errata.recipe.verifiers import verifiers_of

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4", "hint": "double"}]


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    def refuse(*args, **settings):
        raise ConnectionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("errata.recipe.own_rows.load_dataset", refuse)


def written(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        path.write_text("question,answer,hint\n1+1?,2,\n2+2?,4,double\n")
    else:
        Dataset.from_list([{"hint": None, **row} for row in rows]).to_parquet(str(path))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv"])
def test_a_file_of_each_kind(tmp_path, name):
    rows = read_rows(str(written(tmp_path / name)), "train")
    assert list(rows["question"]) == ["1+1?", "2+2?"]
    assert list(rows["answer"]) == ["2", "4"]
    assert list(rows["hint"]) == (["", "double"] if name.endswith("csv") else [None, "double"])
    with pytest.raises(ValueError, match="is one file, without a split 'test'; name its rows with eval_dataset_name"):
        read_rows(str(tmp_path / name), "test")
    assert len(read_rows(str(tmp_path / name), "test", argument="eval_dataset_name")) == 2


def test_values_of_a_csv_are_texts(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,answer\nJames?,007\nNothing?,NA\n")
    assert list(read_rows("rows.csv", "train")["answer"]) == ["007", "NA"]


@pytest.mark.parametrize("end", ["jsonl", "json", "parquet", "csv"])
def test_a_folder_with_a_file_for_each_split(tmp_path, end):
    written(tmp_path / "data" / f"train.{end}")
    written(tmp_path / "data" / f"test.{end}", ROWS[1:])
    assert len(read_rows("data", "train")) == 2
    assert read_rows("data", "test")[-1]["answer"] == "4"


def test_saved_data_sets(tmp_path):
    rows = Dataset.from_list(ROWS[:1])
    rows.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    assert list(read_rows("one", "train")["answer"]) == ["2"]
    assert list(read_rows("both", "test")["answer"]) == ["2"]
    with pytest.raises(
        ValueError, match="dataset_name: one has no splits, so no 'test'; name rows with eval_dataset_name"
    ):
        read_rows("one", "test")
    with pytest.raises(ValueError, match="dataset_name: both has no split 'dev'; it has train, test"):
        read_rows("both", "dev")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a":', "rows.jsonl, line 2: broken JSON at column 6"),
        ("rows.jsonl", '{"a": 1}\n[1]', "rows.jsonl, line 2: a JSON list; write one object a line"),
        ("rows.jsonl", '{"a": 1}\n{"a": "x"}', "rows.jsonl: column 'a' has values of different types"),
        ("rows.json", "[1, 2]", "rows.json: its list must hold one object for each row"),
        ("rows.parquet", "junk", "cannot read rows.parquet: "),
        ("rows.txt", "junk", "dataset_name: rows.txt: of a kind that is not read; give .jsonl, .json, .parquet, .csv"),
        ("other", "", "no file or folder 'rows.jsonl'; give an existing one, or a set of the hub (owner/name)"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_rows("rows.jsonl" if name == "other" else name, "train")
    assert "\n" not in str(error.value)


def test_the_hub_is_asked_for_what_is_not_here():
    with pytest.raises(ValueError, match=r"dataset_name: cannot load owner/name \(train\): the hub was asked"):
        read_rows("owner/name", "train")


def test_columns_are_mapped():
    rows = mapped(Dataset.from_list([{"q": "1+1?", "a": "2"}]), {"prompt": "q", "answer": "a"}, chat=True)
    assert rows[0] == {"answer": "2", "prompt": [{"role": "user", "content": "1+1?"}]}
    with pytest.raises(ValueError, match="columns: prompt: the rows have no column 'qq', did you mean 'q'"):
        mapped(Dataset.from_list([{"q": "?"}]), {"prompt": "qq"})
    with pytest.raises(ValueError, match="columns: prompt: the rows have a column of that name, too"):
        mapped(Dataset.from_list([{"q": "?", "prompt": "!"}]), {"prompt": "q"})


def train_rows(**settings):
    return rows_of(recipe_of({"model": "house", "verifier": ["v.py:v"], **settings}), split="train", task=None)


def test_a_recipes_rows(tmp_path):
    written(tmp_path / "rows.jsonl")
    rows = train_rows(dataset_name="rows.jsonl", columns={"prompt": "question"}, prompt_format="chat")
    assert rows[1]["prompt"] == [{"role": "user", "content": "2+2?"}]
    assert len(set(rows["problem_id"])) == 2
    with pytest.raises(ValueError, match="dataset_streaming: not supported"):
        train_rows(dataset_name="rows.jsonl", dataset_streaming=True)


def test_trls_mixture_of_data_sets(tmp_path):
    for name in ("a", "b"):
        written(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}?"}])
    parts = [{"path": "json", "data_files": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")]
    assert list(train_rows(datasets=parts)["prompt"]) == ["a?", "b?"]
    with pytest.raises(ValueError, match="datasets: the rows are named by dataset_name, too; leave out one of the two"):
        train_rows(datasets=parts, dataset_name="a.jsonl")
    with pytest.raises(ValueError, match="datasets: cannot load them: "):
        train_rows(datasets=[{"path": "json", "data_files": "nowhere.jsonl"}])


JUDGE = "import helper\n\ndef judge(completions, **columns):\n    return [helper.score(c) for c in completions]\n"


def test_files_and_modules_beside_a_recipe_are_found(tmp_path):
    folder = tmp_path / "project"
    written(folder / "rows.jsonl", [{"prompt": "?"}])
    helper = "def score(completion):\n    return 0.25\n\ndef half(completions, **columns):\n    return [0.5] * len(completions)\n"
    (folder / "helper_of_project.py").write_text(helper)
    (folder / "judge.py").write_text(JUDGE.replace("helper", "helper_of_project"))
    (folder / "words.jinja").write_text("{{ prompt }}")
    (folder / "distil").mkdir()  # has a method's name, and is none
    (folder / "my.yaml").write_text(
        "model: house\ndataset_name: rows.jsonl\nverifier: [judge.py:judge, helper_of_project:half]\n"
        "method: distil\ncontext_template: words.jinja\n"
    )
    recipe = read("project/my.yaml")
    assert (recipe.config.method, recipe.config.context_template) == ("distil", str(folder / "words.jinja"))
    assert recipe.script.dataset_name == str(folder / "rows.jsonl")
    assert recipe.given["verifier"][0] == f"{folder / 'judge.py'}:judge"
    judge, half = verifiers_of(recipe)
    # In a process of its own, which returns verdicts.
    assert [verdict.score for verdict in judge(completions=["a", "b"])] == [0.25, 0.25]
    assert [verdict.score for verdict in half(completions=["a"])] == [0.5]
    assert len(rows_of(recipe, split="train", task=None)) == 1


def test_files_beside_a_recipe_of_the_package_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(read("smollm2.yaml").config.context_template).is_file()


def verifiers(**settings):
    return verifiers_of(recipe_of({"model": "house", "dataset_name": "x", **settings}))


def test_trls_rewards_are_honoured_or_refused(tmp_path):
    (tmp_path / "v.py").write_text("def v(completions, **columns):\n    return [0.5 for _ in completions]\n")
    given = verifiers(
        verifier=["v.py:v"],
        reward_funcs=["think_format_reward", "get_soft_overlong_punishment"],
        reward_model_name_or_path="a/b",
    )
    assert [getattr(judge, "__name__", judge) for judge in given] == [
        *("v", "think_format_reward", "soft_overlong_punishment_reward", "a/b"),
    ]
    assert given[2](completion_ids=[[0] * 1000, [0] * 1152, [0] * 2000]) == [0.0, -0.5, -1.0]
    with pytest.raises(
        ValueError, match="reward_funcs: get_cosine_scaled_reward makes a reward function from its settings"
    ):
        verifiers(reward_funcs=["get_cosine_scaled_reward"])


def test_a_recipe_of_trls_runs_grpo():
    trls = {"model_name_or_path": "house", "dataset_name": "x", "reward_funcs": ["think_format_reward"]}
    assert recipe_of(trls).config.method == "grpo"
    assert recipe_of(trls, ["--method", "sdpo"]).config.method == "sdpo"
    assert recipe_of({**trls, "teacher": "ema"}).config.method == "distil"
    assert recipe_of({**trls, "method": "drift"}).config.method == "drift"
    assert recipe_of({"model": "house", "dataset_name": "x"}).config.method == "distil"
