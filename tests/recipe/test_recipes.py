"""The recipes of the papers' tasks: each runs on a CPU with the house policy, and what it says for a GPU can be read."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from errata import methods
from errata.cli import main
from errata.recipe import read as reading
from errata.recipe.read import read

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FIXTURES = ROOT / "tests" / "fixtures"
TASKS = ("sciknoweval", "tooluse", "livecodebench", "math")

# METHODS: learning rate, top K, EMA rate, teacher, divergence, sources of each task's own paper
PUBLISHED = {
    "sciknoweval": ("distil-science", 5e-5, 100, 0.01, "ema", "forward_ce", ("sibling",)),
    "tooluse": ("sdpo-science", 1e-5, 100, 0.05, "ema", "js", ("sibling", "feedback")),
    "livecodebench": ("distil-code", 1e-6, 20, 0.01, "ema", "forward_ce", ("sibling", "feedback")),
    "math": ("distil-math", 5e-6, 100, 0.05, "frozen", "forward_ce", ("reference",)),
}


def runs(tmp_path, name, *more):
    arguments = ["--task_path", str(FIXTURES / name), "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    assert main(["train", str(RECIPES / f"{name}.yaml"), *arguments, "--max_completion_length", "8", *more]) == 0
    (metrics,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    return metrics, rollouts


@pytest.mark.parametrize(
    ("name", "shown"), [(n, "reference" if n in ("sciknoweval", "math") else "feedback") for n in TASKS]
)
def test_a_step_on_a_cpu(tmp_path, name, shown):
    if name == "math":
        pytest.importorskip("sympy")
    more = ("--task_args.unsafe_local", "true") if name == "livecodebench" else ()
    metrics, rollouts = runs(tmp_path, name, *more)
    assert metrics["step"] == 1
    assert metrics["rollouts/unjudged"] == 0
    assert metrics["teacher/divergence"] > 0
    # A policy that knows nothing of the task fails, so its teacher sees what failures see.
    assert {r["context"]["kind"] for r in rollouts} - {"none"} == {shown}
    prompt = next(r["context"]["prompt"] for r in rollouts if r["context"]["kind"] == shown)
    heading = "Correct solution:" if shown == "reference" else "feedback from your unsuccessful earlier attempt:"
    assert heading in prompt[-1]["content"]


@pytest.fixture
def on_gpu(monkeypatch):
    """Reads a recipe as where there is a GPU; only the recipe's reader believes so."""
    monkeypatch.setattr(reading, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    return lambda name, *more: read(RECIPES / f"{name}.yaml", ["--use_cpu", "true", *more])


@pytest.mark.parametrize("name", TASKS)
def test_on_a_gpu_it_is_the_papers_run(on_gpu, name):
    found = on_gpu(name)
    config, method = found.config, methods.get(found.config.method, **(found.config.method_args or {}))
    told = (config.method, config.learning_rate, method.top_k, method.teacher_rate, method.teacher, method.divergence)
    assert (*told, method.sources) == PUBLISHED[name]
    assert (config.model, config.bf16, config.use_vllm) == ("Qwen/Qwen3-8B", True, True)
    assert (config.num_generations, config.max_completion_length) == (8, 16384 if name == "math" else 8192)
    assert config.max_teacher_prompt_length == 10240
    # The reader sees one process; on the eight the recipe speaks of, 32 problems x 8 rollouts are sampled at a time.
    assert config.generation_batch_size * 8 == 32 * 8
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * 8 == (
        8 if name == "livecodebench" else 256
    )


def test_opsd_on_a_gpu_is_the_released_run(on_gpu):
    """arXiv 2601.18734, released scripts/run_opsd_1b.sh, as its preset states it; TRL samples at least two of a problem."""
    found = on_gpu("opsd")
    config, stated = found.config, methods.PRESETS["opsd"].trainer
    assert (config.model, config.method, config.context_template) == ("Qwen/Qwen3-1.7B", "opsd", None)
    names = {*stated} - {"per_step", "lora_r", "lora_alpha", "lora_target_modules"}
    assert {name: getattr(config, name) for name in names} == {name: stated[name] for name in names}
    adapter = found.model
    assert (adapter.use_peft, adapter.lora_r, adapter.lora_alpha) == (True, stated["lora_r"], stated["lora_alpha"])
    assert tuple(adapter.lora_target_modules) == stated["lora_target_modules"]
    assert config.num_generations == 2
    assert config.generation_batch_size * 4 == 32


def test_opsd_takes_a_step_on_a_cpu(tmp_path):
    pytest.importorskip("sympy")
    arguments = ["--task_path", str(FIXTURES / "math"), "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    assert main(["train", str(RECIPES / "opsd.yaml"), *arguments, "--max_completion_length", "8"]) == 0
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    shown = [row["context"]["prompt"] for row in rollouts if row["context"]["kind"] == "reference"]
    assert shown  # one of the rows has no solution
    for prompt in shown:
        assert "do not quote" in prompt[-1]["content"]


def test_mathematics_trains_an_adapter_on_a_gpu(on_gpu):
    found = on_gpu("math").model
    assert (found.use_peft, found.lora_r, found.lora_alpha, found.lora_target_modules) == (True, 64, 128, "all-linear")


def test_its_adapter_takes_a_step(tmp_path):
    pytest.importorskip("sympy")
    metrics, _ = runs(tmp_path, "math", "--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "all-linear")
    assert metrics["teacher/divergence"] > 0
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize(
    ("name", "more", "per_step"),
    [
        ("tooluse", ("--method", "drift-released", "--learning_rate", "5e-6"), 256),
        ("livecodebench", ("--method", "sdpo-code", "--gradient_accumulation_steps", "32"), 256),
    ],
)
def test_the_other_papers_settings_that_a_recipe_names(on_gpu, name, more, per_step):
    assert " ".join(more) in (RECIPES / f"{name}.yaml").read_text()
    config = on_gpu(name, *more).config
    methods.get(config.method, **(config.method_args or {}))
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * 8 == per_step
    stated = methods.PRESETS[config.method].trainer.get("learning_rate", 5e-6)
    assert config.learning_rate == stated
