"""Model cards and the hub, without a network: the hub's client is replaced by one that copies what it is given."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, PeftModel
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer

from errata import methods
from errata.training import hub
from errata.training.card import card


@pytest.fixture
def uploaded(tmp_path, monkeypatch):
    """Where the files land, and what else was said with them."""
    calls = []

    class Client:
        def upload_folder(self, *, folder_path, ignore_patterns, **told):
            target = tmp_path / "hub" / str(len(calls))
            calls.append({**told, "at": target})
            for file in Path(folder_path).rglob("*"):
                name = str(file.relative_to(folder_path))
                if file.is_file() and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target / name)
            return "sent"

    monkeypatch.setattr(hub, "HfApi", Client)
    return calls


def pushed(run, **given):
    run.hub_model_id = "me/letters"
    return run.push_to_hub(token="t", **given)


def front(text):
    return yaml.safe_load(text.split("---")[1])


def test_an_adapter_is_pushed_with_its_card_and_no_log(tmp_path, uploaded):
    run = trainer(
        tmp_path / "run", "distil", max_steps=1, eval_rows=2, peft_config=LoraConfig(r=2, target_modules=["q_proj"])
    )
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "rollouts.jsonl").write_text('{"prompt": "secret"}\n')
    run.train()
    run.evaluate()
    assert pushed(run) == "sent"
    (call,) = uploaded
    assert (call["repo_id"], call["token"], call["run_as_future"]) == ("me/letters", "t", False)
    files = {str(f.relative_to(call["at"])) for f in call["at"].rglob("*") if f.is_file()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert not {name for name in files if name.endswith((".jsonl", ".pt", ".bin"))}
    text = (call["at"] / "README.md").read_text()
    assert front(text)["library_name"] == "peft"
    assert front(text)["tags"] == ["errata", "trl", "distil", "lora"]
    assert f"| avg@{run.args.eval_k} |" in text
    # What was sent is a model.
    loaded = PeftModel.from_pretrained(build_model(len(TOKENIZER)), call["at"])
    own = dict(run.model.named_parameters())
    name = next(name for name in own if "lora_B" in name)
    assert (dict(loaded.named_parameters())[name] == own[name]).all()


def test_checkpoints_are_pushed_without_training_state(tmp_path, uploaded):
    changes = {"save_strategy": "steps", "save_steps": 1}
    run = trainer(tmp_path / "run", "grpo", max_steps=1, **changes)
    run.hub_model_id = "me/letters"
    run.args.push_to_hub = True  # as if the repository had been made already
    run.train()
    assert [call["commit_message"] for call in uploaded] == ["Training in progress, step 1"]
    files = {str(f.relative_to(uploaded[0]["at"])) for f in uploaded[0]["at"].rglob("*") if f.is_file()}
    assert {"model.safetensors", "config.json"} <= files
    assert not {name for name in files if name.startswith(("optimizer", "scheduler", "errata_state", "trainer_state"))}


def test_the_card_says_what_trained_the_policy():
    method = methods.get("distil", teacher_rate=0.02)
    config = {
        "model": "Qwen/Qwen3-8B",
        "method": "distil",
        "task": "sciknoweval/biology",
        "dataset_name": "owner/rows",
        "learning_rate": 1e-5,
        "seed": 3,
    }
    env = {
        "argv": ["/somewhere/bin/errata", "train", "recipes/sciknoweval.yaml", "--run_name", "a b"],
        "versions": {"errata": "0.1.0", "trl": "1.16.0"},
        "git": {"commit": "0123456789abcdef", "changed": True},
        "device": "8 x H200",
    }
    evaluations = [
        {"step": 0, "task": "biology", "n_problems": 50, "k": 8, "avg@8": 0.25, "avg@8_low": 0.2, "avg@8_high": 0.3},
        {"step": 80, "task": "biology", "n_problems": 50, "k": 8, "avg@8": 0.5, "teacher_accuracy": 0.75},
    ]
    text = card("letters", method, config, env=env, evaluations=evaluations, steps=80)
    assert front(text) == {
        "base_model": "Qwen/Qwen3-8B",
        "datasets": ["owner/rows"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["errata", "trl", "distil"],
    }
    for line in (
        "| avg@8 | 25.0 [20.0, 30.0] | 50.0 |",
        "| teacher_accuracy | – | 75.0 |",
        "| data | `sciknoweval/biology`, `owner/rows` |",
        "| steps | 80 |",
        "| code | 0123456789ab with changes |",
        "| versions | errata 0.1.0, trl 1.16.0 |",
        "| method_args.teacher_rate | `0.02` |",
        "| learning_rate | `1e-05` |",
        "errata train recipes/sciknoweval.yaml --run_name 'a b'",
    ):
        assert line in text.splitlines()
    assert "arXiv" in text
    assert "None" not in text.replace("`None`", "")


def test_a_model_on_a_disk_is_no_hub_id():
    text = card("x", methods.get("grpo"), {"model": "./mine", "method": "grpo"}, env={})
    assert "base_model" not in front(text)
    assert "rows that were given in Python" in text
    assert "(a Python program)" in text
