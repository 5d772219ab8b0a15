"""``errata plan``: the sizes of real models from their configs, what it prints, and what it refuses."""

from pathlib import Path

import pytest

from errata.cli import main
from errata.commands.plan import empty_model, load_of, on_gpus, shape_of

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "tests" / "fixtures" / "shapes"
SCIENCE = str(ROOT / "recipes" / "sciknoweval.yaml")


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [("0.5b", 494_032_768, True), ("8b", 8_190_735_360, False)],  # as their model cards count them
)
def test_sizes_of_published_models(name, parameters, tied):
    shape = shape_of(empty_model(str(SHAPES / name)))
    assert (shape.parameters, shape.tied, shape.vocabulary) == (parameters, tied, 151_936)


def test_it_prints_the_estimate_of_the_recipe_on_a_gpu(capsys):
    assert main(["plan", SCIENCE, "--model", str(SHAPES / "8b"), "--gpus", "8", "--memory", "80"]) == 0
    printed = capsys.readouterr().out
    assert "8.19 G parameters, method distil-science, teacher ema" in printed
    assert "sampled at a time: 32 problems x 8 rollouts; an optimizer step: 256 rollouts" in printed
    assert "a micro-batch: 2 x (2048 + 8192) tokens" in printed
    lines = {line.strip()[:32].strip(): line.split()[-1] for line in printed.splitlines() if line.strip()}
    # 8.19 G x 4 bytes / 8, twice that for AdamW, 2 bytes / 8 for the teacher; vLLM has 0.3 of 80 GB
    expected = {"weights": "4.1", "gradients": "4.1", "optimizer": "8.2", "teacher weights": "2.0", "vLLM": "24.0"}
    assert {name: lines[name] for name in expected} == expected


def test_it_warns_of_a_run_that_cannot_fit_and_says_what_would(capsys):
    words = ["plan", SCIENCE, "--model", str(SHAPES / "8b"), "--per_device_train_batch_size", "8"]
    assert main([*words, "--gradient_accumulation_steps", "4"]) == 1
    told = capsys.readouterr().err
    assert "this run cannot fit: loss needs" in told
    assert "with vllm_mode: server it needs" not in told  # not enough
    assert main([*words[:4], "--gpus", "1", "--memory", "24", "--vllm_mode", "server"]) == 1


def test_vllm_without_room_for_one_answer_cannot_start(capsys):
    words = ["plan", SCIENCE, "--model", str(SHAPES / "8b"), "--vllm_gpu_memory_utilization", "0.2"]
    assert main(words) == 1
    assert "vLLM cannot start: 0.2 of 80 GB hold its weights (16.4 GB) and no answer" in capsys.readouterr().err


def test_the_adapter_is_counted(capsys):
    recipe = on_gpus(str(ROOT / "recipes" / "math.yaml"), ["--model", str(SHAPES / "0.5b")], 8)
    model = empty_model(str(SHAPES / "0.5b"))
    load = load_of(recipe, model, 8, "ddp", 2048)
    # rank 64 x (inputs + outputs) of q, k, v, o, gate, up and down in 24 layers
    widths = 2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864)
    assert load.adapter == 24 * 64 * widths
    assert (load.teacher, load.rows, load.generation_rows, load.accumulates) == ("frozen", 1, 32, True)
    assert (load.weight_bytes, load.mixed, load.completion, load.teacher_prompt) == (2, True, 16384, 10240)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "0"], "--gpus 0"),
        (["--model", str(SHAPES)], "model: "),
        (["--gpus", "3", "--gradient_accumulation_steps", "2"], "must be divisible by num_generations (8)"),
        (["--generation_batch_size", "100"], "generation_batch_size: 100 is not a multiple of 8 GPUs x 2 rollouts"),
    ],
)
def test_bad_input_is_told_in_one_line(words, told, capsys):
    assert main(["plan", SCIENCE, *words]) == 2
    assert told in capsys.readouterr().err
