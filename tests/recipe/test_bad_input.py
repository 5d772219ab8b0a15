"""Bad input of every kind ends in one clear line that names it, before anything is computed."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tests.training.worlds import TOKENIZER, build_model, rows

from errata import methods, tasks
from errata.cli import main
from errata.methods.sdpo import SDPO
from errata.recipe import models, verifiers
from errata.recipe.rows import check_enough, checked
from errata.validate import Range, check, check_settings

BAD = yaml.safe_load((Path(__file__).parent / "bad_settings.yaml").read_text())
RIGHT = {"model": "house", "task": "rulebook/new-rule", "per_device_train_batch_size": 8, "num_generations": 4}


def recipe(folder, **settings):
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({**RIGHT, "output_dir": str(folder / "run"), **settings}))
    return str(path)


def refused(capsys, *words):
    """The one line that a command says before it ends with status 2."""
    assert main([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("errata: ")
    assert len(lines[0]) < 600
    return lines[0]


def _id(case):
    return "-".join(f"{name}={value}" for name, value in case.items())


@pytest.mark.parametrize("case", BAD["settings"], ids=_id)
def test_a_bad_setting_is_named(tmp_path, capsys, case):
    (name,) = case
    assert name in refused(capsys, "train", recipe(tmp_path, **case))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", BAD["method_args"], ids=_id)
def test_a_bad_setting_of_a_method_is_named(case):
    ((name, value),) = case.items()
    method, _, setting = name.partition(".")
    with pytest.raises(ValueError, match=setting):
        methods.get(method, **{setting: value})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "1e30"], "--learning_rate: must be a number in [0, 1], got 1e+30"),
        (["--top_p=.nan"], "--top_p: must be a number in (0, 1], got nan"),
        (["--top_p=nan"], "--top_p: must be a number in (0, 1], got 'nan'"),
        (["--bf17", "true"], "bf17: unknown argument, did you mean 'bf16'"),
        (["--method_args.future_weight", "abc"], "future_weight: must be a number of at least 0, got 'abc'"),
        (["--task_args", "{feedbak: trace}"], "task_args: no setting 'feedbak', did you mean 'feedback'"),
        (["--expert_args.foo", "3"], "expert_args: 'foo'"),
        (["--method", "grpo", "--method_args", "[1]"], "--method_args: must be a mapping"),
        (["--use_vllm", "true"], "vllm"),
        (["--report_to", "wandb"], "wandb"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_word_of_the_command_line_is_named(tmp_path, capsys, words, said):
    assert said in refused(capsys, "train", recipe(tmp_path), *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 1e-3\ntask: math\nlearning_rate: 1e-4\n", "learning_rate: given in lines 1 and 3"),
        ("method_args:\n  credit: sum\n  credit: mean\n", "credit: given in lines 2 and 3"),
        ("model: house\nenv: [a]\n", "env: must be a mapping"),
        ("model: house\nenv: some text\n", "env: must be a mapping"),
        ("model: house\nmethod_args: 3\n", "method_args: must be a mapping"),
        ("model: house\n3: x\n", "3 is no argument's name"),
        ("model: house\nnull: x\n", "None is no argument's name"),
        ("model: house\nno_bf16: true\n", "no_bf16: unknown argument"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("model: house\non_gpu: {top_p: 3}\n", "top_p: must be a number in (0, 1], got 3"),
    ],
    ids=range(10),
)
def test_a_bad_file_is_named(tmp_path, capsys, text, said):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert said in refused(capsys, "train", str(path))


def test_settings_are_checked_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; from errata.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", recipe(tmp_path, learning_rate=1e30)], capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "learning_rate: must be a number in [0, 1], got 1e+30" in done.stderr


# -- the validator itself ---------------------------------------------------------------------------------------------


@given(st.floats() | st.integers(-5, 5))
def test_a_range_accepts_what_it_says(value):
    hint = Annotated[float, Range(0, 1, above=True)] | None
    inside = math.isfinite(value) and 0 < value <= 1
    if inside:
        check("x", value, hint)
    else:
        with pytest.raises(ValueError, match=r"^x: must be a number in \(0, 1\], or null, got "):
            check("x", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "accepted"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        (1, bool, False),
        ("true", bool, False),
        (10**400, float, False),
        (None, int | None, True),
        ("b", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (["a"], tuple[str, ...], True),
        ("a", tuple[str, ...], False),
        ([1], list[str], False),
        ({"a": 1}, dict[str, int], True),
        (math.nan, object, False),
        ("anything", object, True),
    ],
)
def test_types(value, hint, accepted):
    if accepted:
        check("x", value, hint)
    else:
        with pytest.raises(ValueError, match=r"^x: "):
            check("x", value, hint)


@dataclass(frozen=True, kw_only=True)
class Mine(SDPO):
    warm: bool = True
    depth: Annotated[int, Range(2)] = 2

    def __post_init__(self):
        object.__setattr__(self, "depth", self.depth + 1)  # before the base class has checked anything


def test_a_users_method_is_checked_by_its_own_annotations(tmp_path):
    assert Mine().depth == 3
    with pytest.raises(ValueError, match="depth: must be a whole number of at least 2, got 'x'"):
        check_settings(Mine, {"depth": "x"})
    with pytest.raises(ValueError, match="warm: must be true or false, got 'perhaps'"):
        check_settings(Mine, {"warm": "perhaps"})
    (tmp_path / "bad.py").write_text("class Mine(:\n")
    with pytest.raises(ValueError, match=r"method: .*bad.py' does not import: SyntaxError"):
        methods.get(f"{tmp_path / 'bad.py'}:Mine")


@pytest.mark.parametrize(
    ("task", "args", "said"),
    [
        ("rulebook/new-rule", {"feedbak": "trace"}, "task_args: no setting 'feedbak', did you mean 'feedback'"),
        ("tooluse", {"show_answer": "perhaps"}, "task_args: show_answer: must be true or false"),
        ("livecodebench/v6", {"timeout_s": math.nan}, "task_args: timeout_s: must be a number above 0, got nan"),
    ],
)
def test_a_bad_setting_of_a_task_is_named(task, args, said):
    with pytest.raises(ValueError, match=said):
        tasks.verifier(task, **args)


# -- rows and verifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completions": "b"}, "column 'completions' has a name"),
        ({"prompt": "a", "prompts": "b"}, "column 'prompts' has a name"),
        ({"prompt": "a", "images": "b"}, "column 'images' has a name"),
        ({"prompt": [{"role": "user", "content": None}]}, "row 0, column 'prompt'"),
        ({"prompt": "  "}, "row 0, column 'prompt'"),
        ({"prompt": "a", "problem_id": " "}, "row 0, column 'problem_id': is empty"),
        ({"prompt": "a", "reference": ["b"]}, "row 0, column 'reference': must be a text or null, got"),
        ({"prompt": "a", "reference": 3}, "row 0, column 'reference': must be a text or null, got 3"),
    ],
)
def test_a_bad_row_is_named(row, said):
    with pytest.raises(ValueError, match=said):
        checked(Dataset.from_list([row]), "data")


def test_fewer_problems_than_a_step_needs(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    (tmp_path / "v.py").write_text("def v(completions, **kw):\n    return [0.0] * len(completions)\n")
    settings = {"task": None, "dataset_name": str(tmp_path), "verifier": [f"{tmp_path / 'v.py'}:v"]}
    line = refused(capsys, "train", recipe(tmp_path, **settings))
    assert "1 problems, and a step samples 2 (8 rollouts, 4 of each)" in line
    assert "per_device_train_batch_size" in line


def test_exactly_enough_problems_are_accepted():
    class Config:
        generation_batch_size, num_generations = 8, 4

    check_enough(Config(), rows(2))
    with pytest.raises(ValueError, match="1 problems, and a step samples 2"):
        check_enough(Config(), rows(1))


def test_a_missing_column_of_a_verifier_is_named():
    def v(completions, answer, hint=None, **columns):
        return [0.0] * len(completions)

    verifiers.check_columns([v], ["prompt", "answer"])
    verifiers.check_columns([torch.nn.Linear(1, 1), "a/reward-model"], ["prompt"])
    with pytest.raises(
        ValueError, match="verifier: v needs the column 'answer', and the rows have prompt, answers, did"
    ):
        verifiers.check_columns([v], ["prompt", "answers"])


def test_a_verifier_that_exits_at_import(tmp_path, capsys):
    (tmp_path / "v.py").write_text("import sys\nsys.exit(0)\n")
    line = refused(capsys, "train", recipe(tmp_path, verifier=[f"{tmp_path / 'v.py'}:v"]))
    assert "does not import: SystemExit" in line


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    folder = tmp_path / "policy"
    build_model(len(TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def _weights(change):
    def damage(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def _bytes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _config(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_bytes("model.safetensors", b""), "cannot load"),
        (_bytes("model.safetensors", b"junk" * 40), "cannot load"),
        (_bytes("config.json", b"[]"), "cannot load"),
        (_bytes("config.json", b"{"), "cannot load"),
        (
            _config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
            r"lacks .* of its weights, such as 'model.layers.2",
        ),
        (_config(num_hidden_layers=-1), "model: "),
        (_config(hidden_size=64), "cannot load"),
        (_weights(lambda t: t.pop(FIRST)), f"lacks 1 of its weights, such as '{FIRST}'"),
        (_weights(lambda t: t[FIRST].fill_(float("nan"))), f"weight '{FIRST}' of .* holds NaN"),
        (_weights(lambda t: t.update({FIRST: t[FIRST][:-1].clone()})), "cannot load"),
    ],
    ids=["empty", "junk", "list", "torn", "layer more", "negative", "hidden", "lacks one", "nan", "shape"],
)
def test_damaged_weights_are_named_in_one_line(policy, damage, said):
    models.load_model(str(policy))
    damage(policy)
    with pytest.raises(ValueError, match=said) as caught:
        models.load_model(str(policy))
    assert len(str(caught.value).splitlines()) == 1


def test_an_encoders_weights(tmp_path):
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **small)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .* of its weights.*not an encoder"):
        models.load_model(str(tmp_path))


MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template, and the prompts are messages"),
        ("", "has no chat template"),
        ("{{ raise_exception('no users') }}", "chat template fails on the first prompt: .*no users"),
        ("{% for %}", "chat template fails on the first prompt"),
        ("{# nothing #}", "makes an empty text of the first prompt"),
    ],
)
def test_chat_templates(policy, template, said):
    tokenizer = models.load_tokenizer(str(policy))
    models.check_chat_template(tokenizer, MESSAGES)
    tokenizer.chat_template = template
    models.check_chat_template(tokenizer, "a plain text needs none")
    with pytest.raises(ValueError, match=said):
        models.check_chat_template(tokenizer, MESSAGES)


def test_tokenizers(policy):
    tokenizer = models.load_tokenizer(str(policy))
    model = models.load_model(str(policy))
    models.check_vocabulary(model, tokenizer)
    tokenizer.add_tokens(["<one-more>"])
    with pytest.raises(ValueError, match=f"ids up to {len(TOKENIZER)}, and the model knows {len(TOKENIZER)} tokens"):
        models.check_vocabulary(model, tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(policy)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        models.load_tokenizer(str(policy))
    (policy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        models.load_tokenizer(str(policy))


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "1000000000"], "--k: must be a whole number in [1, 100,000], got 1000000000"),
        (["--max_completion_length", "0"], "--max_completion_length: must be a whole number of at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be a whole number in [0, "),
        (["--temperature", "inf"], "--temperature: must be a number of at least 0"),
        (["--top_p", "nan"], "--top_p: must be a number in (0, 1]"),
        (["--out", "."], "--out: . must be a file in an existing directory"),
    ],
)
def test_options_of_eval(capsys, words, said):
    assert said in refused(capsys, "eval", "house", "--task", "rulebook/new-rule", *words)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("two\nlines"), "RuntimeError: two lines (--debug shows where)"),
        (ImportError("No module named 'vllm'"), "install the missing package"),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower per_device_train_batch_size"),
        (ConnectionResetError(104, "reset by peer"), "ConnectionResetError: [Errno 104] reset by peer"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_an_unforeseen_error_is_one_line_and_debug_shows_where(monkeypatch, capsys, error, said):
    def fail(name):
        raise error

    monkeypatch.setattr("errata.reports.methods.describe", fail)
    assert main(["methods", "x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert main(["methods", "x", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
