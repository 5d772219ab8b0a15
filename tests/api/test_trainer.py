"""``errata.Trainer``: what a TRL script gives is taken, and the run directory is whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from tests.tiny import build_model, build_tokenizer
from trl import GRPOConfig

import errata
from errata import methods
from errata.api.trainer import free_directory, method_and_config
from errata.reports.rundir import plain
from errata.training.trainer import ErrataTrainer as Inner

SETTINGS = {"max_steps": 1, "max_completion_length": 6, "per_device_train_batch_size": 4, "num_generations": 2}
ROWS = [{"prompt": [{"role": "user", "content": f"{n}+{n}="}], "answer": str(2 * n)} for n in range(4)]
PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def judge(completions, answer, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [
        errata.Verdict(float(right in text), f"the sum is {right}") for text, right in zip(texts, answer, strict=True)
    ]


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    return {
        "model": build_model(len(tokenizer), hidden=16, layers=1),
        "processing_class": tokenizer,
        "train_dataset": ROWS,
    }


def test_a_method_by_its_name_a_bare_function_and_rows_without_an_id(given, tmp_path):
    trainer = errata.Trainer(**given, verifiers=judge, method="distil", args=SETTINGS)
    assert isinstance(trainer, Inner)
    assert isinstance(trainer.method, methods.DistIL)
    assert len(set(trainer.train_dataset["problem_id"])) == 4
    assert trainer.train().global_step == 1
    run = errata.load_run("runs/run-distil")
    assert run.env["status"] == "finished"
    assert run.config["method"] == "distil"
    assert run.config["method_settings"] == plain(methods.get("distil").settings())
    assert list(run.metrics["step"]) == [1]
    assert "teacher/gap" in run.metrics.columns
    assert set(run.rollouts["feedback"]) <= {f"the sum is {2 * n}" for n in range(4)}
    assert len(run.evals) == 0
    assert (tmp_path / "runs" / "run-distil" / "model.safetensors").is_file()
    # The same trainer again: a directory of its own, and the first run is as it was.
    trainer.train()
    assert trainer.directory.path == Path("runs/run-distil-2")
    assert errata.load_run("runs/run-distil").env["started"] == run.env["started"]


def test_a_trl_script_with_another_import_and_a_method(given, tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path / "out"), learning_rate=3e-3, beta=0.0, bf16=False, report_to="none", **SETTINGS
    )

    def length(completions, **columns):
        return [float(len(completion[0]["content"])) for completion in completions]

    from errata import ErrataTrainer

    given["train_dataset"] = Dataset.from_list(ROWS)
    trainer = ErrataTrainer(reward_funcs=length, args=args, method="grpo", **given)
    # TRL's values, not errata's defaults (0.28, "none", 1).
    assert (trainer.args.epsilon_high, trainer.args.scale_rewards, trainer.args.logging_steps) == (None, "group", 10)
    assert trainer.args.learning_rate == 3e-3
    assert args.output_dir == str(tmp_path / "out")
    before = trainer.model.state_dict()["model.norm.weight"].clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.state_dict()["model.norm.weight"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_places_of_trls_arguments(given):
    model = given.pop("model")
    trainer = errata.Trainer(
        model,
        [judge, judge],
        errata.ErrataConfig(**SETTINGS),
        given["train_dataset"],
        processing_class=given["processing_class"],
    )
    assert len(trainer.reward_funcs) == 2
    assert trainer.args.method == "distil"


def test_a_task_and_a_model_by_name_need_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = errata.Trainer("house", args={**SETTINGS, "task": "rulebook/new-rule"}, method="grpo")
    assert trainer.args.output_dir == "runs/rulebook-new-rule-grpo"
    assert trainer.train_dataset[0]["problem_id"] == "rulebook/new-rule/train/0"


def chosen(method, args, method_args=None):
    found, config = method_and_config(method, method_args, args)
    return type(found).__name__, config.method, config.output_dir


def test_the_method_is_said_once():
    sdpo = methods.get("sdpo")
    assert chosen("sdpo", None) == ("SDPO", "sdpo", "runs/run-sdpo")
    assert chosen(None, {"method": "drift"}) == ("DRIFT", "drift", "runs/run-drift")
    assert chosen(sdpo, errata.ErrataConfig()) == ("SDPO", "sdpo", "runs/run-sdpo")
    assert chosen(sdpo, errata.ErrataConfig(output_dir="mine", method="sdpo")) == ("SDPO", "sdpo", "mine")
    assert chosen("drift", errata.ErrataConfig(run_name="x")) == ("DRIFT", "drift", "runs/x")
    found, _ = method_and_config("distil", {"future_weight": 0.5}, {"method_args": {"credit": "mean"}})
    assert (found.future_weight, found.credit) == (0.5, "mean")
    for method, args, message in [
        (sdpo, {"method": "drift"}, "method: the settings say 'drift', and the argument is a SDPO; say one"),
        ("sdpo", errata.ErrataConfig(method="drift"), "the settings say 'drift', and the argument 'sdpo'; say one"),
        ("sdop", None, "method: unknown 'sdop', did you mean 'sdpo'"),
        (None, {"learning_rat": 1.0}, "args: learning_rat: unknown setting, did you mean 'learning_rate'"),
        (None, {"learning_rate": -1.0}, "args: learning_rate: must be"),
        (None, "recipe.yaml", "args: must be an ErrataConfig, a GRPOConfig or a mapping of settings, got str"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message.partition(",")[0])):
            method_and_config(method, None, args)
    with pytest.raises(ValueError, match="method_args: the method is an object with its settings"):
        method_and_config(sdpo, {"history": 1}, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifiers": judge, "reward_funcs": judge}, "reward_funcs: TRL's name of verifiers, which are given, too"),
        ({}, "verifier: missing"),
        ({"verifiers": [3]}, "verifiers: each must be a function, a reward model or a name, got 3"),
        (
            {"verifiers": judge, "train_dataset": [{"question": "?"}]},
            "train_dataset: no column 'prompt' (has question)",
        ),
        (
            {"verifiers": judge, "train_dataset": [{"prompt": "?"}, {"prompt": "!"}]},
            "verifier: judge needs the column 'answer'",
        ),
        (
            {"verifiers": judge, "train_dataset": "rows.jsonl"},
            "train_dataset: must be a datasets.Dataset or a list of rows",
        ),
        ({"verifiers": judge, "train_dataset": ROWS[:1]}, "train data: 1 problems, and a step samples 2"),
        ({"verifiers": judge, "model": None}, "model: missing; name a hub id, a directory or `house`, or give a model"),
        (
            {"verifiers": judge, "args": {**SETTINGS, "eval_strategy": "steps", "eval_steps": 1}},
            "eval_dataset: missing",
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(given, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        errata.Trainer(**{"args": SETTINGS, **given, **changes})


def test_a_stream_of_rows_is_refused(given):
    given["train_dataset"] = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(ValueError, match=r"train_dataset: must be a datasets\.Dataset or a list of rows, got Iterable"):
        errata.Trainer(**given, verifiers=judge, args=SETTINGS)


def test_evaluate_takes_rows_and_a_function_or_a_name(given):
    found = errata.evaluate(given["model"], ROWS, verifier=judge, tokenizer=given["processing_class"], k=2, problems=3)
    assert (found.metrics["n_problems"], found.metrics["k"], len(found.rows)) == (3, 2, 6)
    with pytest.raises(ValueError, match="verifier: missing; rows of your own need one"):
        errata.evaluate(given["model"], ROWS, tokenizer=given["processing_class"])
    with pytest.raises(ValueError, match="task: missing; name one of `errata tasks`, or give rows and a verifier"):
        errata.evaluate(given["model"], tokenizer=given["processing_class"])


def test_a_free_directory(tmp_path):
    assert free_directory(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert free_directory(tmp_path / "run") == tmp_path / "run-3"


def test_the_import_is_fast_and_the_names_are_there():
    code = (
        "import sys, time; start = time.perf_counter(); import errata; seconds = time.perf_counter() - start; "
        "assert 'torch' not in sys.modules; assert seconds < 0.5, seconds; print(*dir(errata))"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"Trainer", "ErrataTrainer", "ErrataConfig", "evaluate", "compare", "load_run"} <= set(names)
    with pytest.raises(AttributeError, match="module 'errata' has no attribute 'Tainer'"):
        errata.Tainer  # noqa: B018


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_pages_two_scripts_differ_in_the_import_and_the_method():
    trl, ours = (block.splitlines() for block in blocks()[1:3])
    assert [line for line in trl if line not in ours] == [
        "from trl import GRPOConfig, GRPOTrainer",
        "trainer = GRPOTrainer(",
    ]
    assert [line for line in ours if line not in trl] == [
        "from trl import GRPOConfig",
        "from errata import ErrataTrainer",
        "trainer = ErrataTrainer(",
        '    method="distil",',
    ]


@pytest.mark.parametrize("number", range(3))
def test_the_pages_scripts_run(number, tmp_path, monkeypatch):
    """The page's blocks as they stand, with fewer steps and the policy that the package carries."""
    monkeypatch.chdir(tmp_path)
    code = blocks()[number].replace("max_steps=80", "max_steps=1").replace('"Qwen/Qwen3-0.6B"', "HOUSE")
    from errata.house import HOUSE_PATH

    exec(compile(code, f"python.md, block {number}", "exec"), {"HOUSE": str(HOUSE_PATH)})
    if number == 0:  # the last block reads what the first wrote
        exec(compile(blocks()[3], "python.md, block 3", "exec"), {})


def test_the_readmes_script_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (PAGE.parents[1] / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    exec(compile(code, "README.md", "exec"), {})
    assert list(errata.load_run("runs/run-distil").metrics["step"]) == [1, 2]


@pytest.mark.slow
def test_compare_trains_and_returns_the_table(tmp_path):
    recipe = {
        **{
            "model": "house",
            "task": "rulebook/new-rule",
            "max_steps": 1,
            "max_completion_length": 8,
            "eval_problems": 4,
        },
        **{"per_device_train_batch_size": 4, "num_generations": 2, "eval_k": 2, "save_strategy": "no"},
    }
    found = errata.compare(recipe, ["grpo", "distil"], seeds=1, output_dir=tmp_path / "both", settings={"seed": 3})
    assert set(found.rows) == {"grpo", "distil"}
    assert 0 <= found.rows["distil"]["avg@2"].mean <= 1
    assert errata.load_run(tmp_path / "both" / "grpo-seed3").config["seed"] == 3
    broken = {**recipe, "verifier": ["no.py:judge"]}
    with pytest.raises(RuntimeError, match="a run of the comparison failed; its log is in"):
        errata.compare(broken, ["grpo"], seeds=1, output_dir=tmp_path / "bad")
