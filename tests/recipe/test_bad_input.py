"""Bad input of every kind ends in one clear line that names it, before anything is computed."""

import json
import math
import re
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"deepspeed": "list.json"}, "deepspeed: .*list.json must hold a JSON object, not a list"),
        ({"deepspeed": "nowhere.json"}, "deepspeed: cannot read .*nowhere.json': No such file"),
        ({"deepspeed": 3}, "deepspeed: must be the path of a JSON file, got 3"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: must be a mapping"),
        ({"neftune_noise_alpha": -1}, "neftune_noise_alpha: must be a number above 0"),
        ({"vllm_mode": "x"}, "vllm_mode: 'x' is none of server, colocate"),
        ({"output_dir": "list.json"}, "output_dir: .*list.json is a file"),
        ({"output_dir": "list.json/x/y"}, "output_dir: .*list.json is a file"),
        ({"output_dir": "a\0b"}, "output_dir: must be the name of a directory"),
        ({"torch_compile": True}, "torch_compile: on a CPU"),
        ({"verifier_isolation": "maybe"}, "verifier_isolation: 'maybe' is none of auto, process, none"),
        ({"rollouts_max_mb": 0}, "rollouts_max_mb: must be a number above 0"),
        ({"expert": "house", "expert_args": {"foo": 1}}, "expert_args: .*'foo'"),
    ],
    ids=str,
)
def test_further_settings_are_named(tmp_path, capsys, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    assert re.search(said, refused(capsys, "train", recipe(tmp_path, **settings)))


def run_recipe(folder, content, **settings):
    """A recipe over rows in a file, with a verifier that scores 0."""
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
    (folder / "v.py").write_text("def v(completions, **kw):\n    return [0.0] * len(completions)\n")
    told = {"task": None, "dataset_name": str(folder), "verifier": [f"{folder / 'v.py'}:v"]}
    return recipe(folder, **told, use_cpu=True, max_completion_length=4, **settings)


CHAT = [{"role": "user", "content": "1+1="}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "1+1="}, {"prompt": CHAT}] * 2, "row 1, column 'prompt': is messages, and .* before it text"),
        ([{"prompt": "1+1=" * 25_000, "problem_id": str(i)} for i in range(2)], "row 0, .* has 100,000 tokens"),
        ([{"prompt": "a", "log_extra": "x"}] * 2, "column 'log_extra' has a name"),
        ([{"prompt": "a", "environments": "x"}] * 2, "column 'environments' has a name"),
        ("[1]\n[2]\n", "column 'prompt'|cannot load"),
        ('{"prompt": "a"\n', "cannot load"),
    ],
    ids=range(6),
)
def test_further_rows_are_named(tmp_path, capsys, rows, said):
    assert re.search(said, refused(capsys, "train", run_recipe(tmp_path, rows)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "line 1: not usable JSON: nested too deeply"),
        ('{"idx": ' + "9" * 5000 + "}", "line 1: not usable JSON: Exceeds the limit"),
        (
            json.dumps({"idx": 1, "prompt": "a", "answer": "[" * 100_000}),
            "line 1: holds JSON that is nested too deeply",
        ),
    ],
    ids=["deep", "number", "deep answer"],
)
def test_json_that_no_parser_reads(tmp_path, capsys, line, said):
    (tmp_path / "train.json").write_text(line + "\n")
    assert said in refused(capsys, "tasks", "tooluse", "--task_path", str(tmp_path))


METHOD = """
from dataclasses import dataclass, replace
from errata.methods.sdpo import SDPO

@dataclass(frozen=True, kw_only=True)
class Mine(SDPO):
    def {function}(self, *args, **kwargs):
        {body}
"""


@pytest.mark.parametrize(
    ("function", "body", "said"),
    [
        ("signals", "raise RuntimeError('oh')", r"Mine.signals: RuntimeError: oh \(mine.py:8\); mend the method"),
        pytest.param("signals", "raise SystemExit(0)", "Mine.signals: SystemExit: 0", marks=pytest.mark.slow),
        pytest.param("context", "raise KeyError('x')", "Mine.context: KeyError: 'x'", marks=pytest.mark.slow),
        ("context", "return 'a'", "Mine.context: must return errata.records.TeacherContext, got str"),
        ("memory", "raise RuntimeError('oh')", "Mine.memory: RuntimeError: oh"),
        ("objective", "return None", "Mine.objective: must return errata.ops.scores.Objective, got NoneType"),
        ("__post_init__", "raise KeyError('x')", "method: .*Mine cannot be made: KeyError: 'x'"),
    ],
)
def test_a_method_whose_own_code_fails_is_named(tmp_path, capsys, function, body, said):
    (tmp_path / "mine.py").write_text(METHOD.format(function=function, body=body))
    told = run_recipe(tmp_path, [{"prompt": "1+1="}, {"prompt": "1+2="}], method=f"{tmp_path / 'mine.py'}:Mine")
    assert main(["train", told]) == 2
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("content", ["", "{#x#}hello"])
def test_a_chat_template_that_leaves_the_prompt_out(policy, content):
    tokenizer = models.load_tokenizer(str(policy))
    tokenizer.chat_template = content
    with pytest.raises(ValueError, match=r"no chat template|leaves out what the prompt says"):
        models.check_chat_template(tokenizer, MESSAGES)


def test_a_template_with_an_unknown_name():
    from errata.contexts import Renderer
    from errata.records import Rollout, TeacherContext, Verdict

    rollout = Rollout(0, "p", "1+1=", "3", Verdict(0.0, "no"))
    with pytest.raises(
        ValueError, match="context_template: UndefinedError: 'nosuch' is undefined; a template sees prompt,"
    ):
        Renderer("{{ nosuch }}").render(rollout, TeacherContext(kind="feedback", feedback="no"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("eval.jsonl", "{}", "row 1 of .*eval.jsonl: step: must be a whole number, got None"),
        ("eval.jsonl", '{"step": 1, "k": 1, "avg@1": "x"}', "row 1 of .*eval.jsonl: avg@1: must be"),
        ("metrics.jsonl", '{"step": 1, "loss": [1]}', "row 1 of .*metrics.jsonl: loss: must be"),
        ("rollouts.jsonl", "{}", "row 1 of .*rollouts.jsonl: step: must be a whole number"),
        (
            "rollouts.jsonl",
            '{"step": 1, "prompt": 3}',
            "row 1 of the rollouts of step 1 is not as errata writes it .TypeError",
        ),
        ("config.yaml", "method: [1]", "config.yaml: method: must be text, or null"),
        ("env.json", '{"git": 3}', "env.json: git: must be a mapping, or null"),
    ],
)
def test_files_of_a_run_that_errata_did_not_write_so(tmp_path, capsys, name, content, said):
    from errata.reports.rundir import RunDirectory

    run = RunDirectory(tmp_path / "run")
    run.open({"method": "distil"})
    run.finish()
    (run.path / name).write_text(content + "\n")
    assert re.search(said, refused(capsys, "report", str(run.path)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tasks rulebook/new-rule --rows -1", "--rows: must be a whole number of at least 0"),
        ("report . --target nan", "--target: must be a number in (0, 1]"),
        ("compare r.yaml --methods grpo --seeds 0", "--seeds: must be a whole number of at least 1"),
        ("compare r.yaml --methods grpo --tune -1", "--tune: must be a whole number of at least 0"),
        ("theory --out .", "--out: . must be a file"),
    ],
)
def test_options_of_other_commands(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path)
    assert said in refused(capsys, *words.split())


def test_a_word_that_argparse_refuses_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "house", "--k", "x"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "errata: argument --k: invalid int value: 'x'; `errata eval --help` lists what there is"
