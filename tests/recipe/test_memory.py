"""The memory formulas: literal bytes of a small shape, and how they follow from engine, teacher and adapter."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from errata.recipe.memory import Load, Shape, estimate, key_value_bytes, mends

SMALL = Shape(
    parameters=1_000_000, layers=2, hidden=100, intermediate=200, queries=100, keys=50, vocabulary=1000, tied=False
)
RUN = Load(
    gpus=4,
    engine="fsdp",
    weight_bytes=2,
    mixed=True,
    rows=1,
    generation_rows=2,
    prompt=10,
    completion=10,
    teacher_prompt=20,
    teacher="ema",
    teacher_bytes=2,
)


def test_every_part_by_hand():
    """Float32 shares of four GPUs; a layer keeps 4,900 bytes a token: norms 1,600 + 900, attention 800, MLP 1,600."""
    assert estimate(SMALL, RUN, 1e9).parts == {
        "weights": 1_000_000,
        "gradients": 1_000_000,
        "optimizer": 2_000_000,
        "communication buckets": 0,
        "gathered weights": 2 * 400_000 * 2 + 200_000 * 2,
        "autocast copies": 0,
        "teacher weights": 500_000,
        "teacher values": 3 * 10 * 100 * 2,
        "activations": 20 * (4_900 + 2 * 200 + 800),
        "attention mask": 20 * 20 * 3,
        "scores: head's gradient": 100_000 * 6,
        "scores: tile, rows, heads": 10 * 1000 * 4 * 2 + 10 * 10 * 100,
        "vLLM": 0,
    }


def test_phases_hold_what_is_there_at_once():
    found = estimate(SMALL, RUN, 1e9)
    always = 1_000_000 + 2_000_000 + 500_000
    assert found.phases["optimizer step"] == always + 1_000_000
    assert found.phases["loss"] == always + 2_000_000 + 6_000 + 122_000 + 1_200 + 600_000 + 90_000
    # The head's gradient is among the gradients by then; the embedding's own is beside it.
    assert found.phases["end of the backward pass"] == always + 3_000_000 + 6_000 + 20 * 4_900 + 400_000
    assert (found.peak, found.phase) == (found.phases["end of the backward pass"], "end of the backward pass")
    more = estimate(SMALL, replace(RUN, accumulates=True), 1e9)
    assert more.phases["loss"] - found.phases["loss"] == 1_000_000


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer", "buckets"),
    [
        ("ddp", 2e6, 2e6, 4e6, 2e6),
        ("zero1", 2e6, 2e6, 3e6, 0),  # float32 masters and states, shared
        ("zero2", 2e6, 5e5, 3e6, 0),
        ("zero3", 5e5, 5e5, 3e6, 0),
        ("fsdp", 1e6, 1e6, 2e6, 0),  # float32 under mixed precision
    ],
)
def test_what_an_engine_shares(engine, weights, gradients, optimizer, buckets):
    parts = estimate(SMALL, replace(RUN, engine=engine)).parts
    found = [parts[n] for n in ("weights", "gradients", "optimizer", "communication buckets")]
    assert found == [weights, gradients, optimizer, buckets]


@pytest.mark.parametrize(
    ("teacher", "all_weights", "adapter"),
    [
        ("none", 0, 0),
        ("live", 0, 0),
        ("frozen", 2e6, 0),
        ("ema", 2e6, 2e4),
        ("sync", 2e6, 2e4),
        ("trust_region", 2e6, 0),
        ("server", 0, 0),
        ("local", 6e6, 6e6),
    ],
)
def test_a_teachers_weights_by_kind(teacher, all_weights, adapter):
    load = replace(RUN, engine="ddp", gpus=1, teacher=teacher, teacher_parameters=3_000_000)
    assert estimate(SMALL, load).parts["teacher weights"] == all_weights
    assert estimate(SMALL, replace(load, adapter=10_000)).parts["teacher weights"] == adapter


def test_an_adapter_has_no_gradient_of_the_head():
    found = estimate(SMALL, replace(RUN, engine="ddp", gpus=1, adapter=10_000))
    assert found.parts["scores: head's gradient"] == 0
    assert found.parts["gradients"] == 20_000
    assert found.parts["optimizer"] == 40_000
    assert found.parts["weights"] == 2_000_000 + 20_000


def test_offloading_moves_the_teacher_to_its_own_phase():
    here, away = (estimate(SMALL, replace(RUN, engine="ddp", gpus=1, teacher_offloaded=o)) for o in (False, True))
    assert here.phases["optimizer step"] - away.phases["optimizer step"] == 2_000_000
    assert here.phases["teacher's forward pass"] == away.phases["teacher's forward pass"]


def test_more_of_anything_never_needs_less():
    base = estimate(SMALL, RUN, 1e9).peak
    for change in (
        {"rows": 2},
        {"completion": 20},
        {"prompt": 20},
        {"checkpointing": False},
        {"gpus": 2},
        {"vllm": 0.3},
        {"teacher": "trust_region"},
        {"accumulates": True},
        {"optimizer_bytes": 12},
    ):
        assert estimate(SMALL, replace(RUN, **change), 1e9).peak >= base, change


def test_mends_are_those_that_fit():
    load = replace(RUN, engine="ddp", weight_bytes=4, teacher_bytes=4, checkpointing=False, rows=2)
    peak = estimate(SMALL, load).peak
    found = dict(mends(SMALL, load, 0, 0.7 * peak))
    assert set(found) == {"dtype: bfloat16", "FSDP", "use_peft: true"}
    assert all(value <= 0.7 * peak for value in found.values())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="engine"):
        estimate(SMALL, replace(RUN, engine="zero4"))
    with pytest.raises(ValueError, match="teacher"):
        estimate(SMALL, replace(RUN, teacher="oracle"))


def test_the_cache_of_qwen3_8b():
    """36 layers x 2 x 8 heads of 128 x 2 bytes, as its model card's config says: 147,456 bytes a token."""
    config = json.loads((Path(__file__).parents[1] / "fixtures" / "shapes" / "8b" / "config.json").read_text())
    shape = replace(SMALL, layers=config["num_hidden_layers"], keys=config["num_key_value_heads"] * config["head_dim"])
    assert key_value_bytes(shape) == 147_456


@pytest.mark.slow
def test_measured_peaks_on_a_cpu():
    """benchmarks/memory.py: what a process needs beside the tensors is 60 MB and a tenth."""
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory_benchmark", path)
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    for model in ("house", "qwen"):
        expected = memory.estimated(memory.steps.SHAPES[model], "distil")
        assert 0.7 < expected / memory.measured(model, "distil", "returned") < 1.05, model
