"""The worked examples of docs/extending.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, rows, settings, trainer, verifier, weights

from errata import methods
from errata.feedback import load_verifier
from errata.recipe.config import ErrataConfig
from errata.training.trainer import ErrataTrainer

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def code(name, folder):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if b.startswith(f"# {name}")]
    path = folder / name
    path.write_text(block)
    return path, block


def test_the_method_trains_and_is_short(tmp_path):
    path, block = code("surer.py", tmp_path)
    assert len(block.splitlines()) < 60
    method = methods.get(f"{path}:Surer", margin=-10.0)
    kept = []
    run = trainer(tmp_path, method, max_steps=2, keep=kept)
    before = torch.cat([p.flatten().clone() for p in run.model.parameters()])
    run.train()
    assert not torch.equal(before, torch.cat([p.flatten() for p in run.model.parameters()]))
    logged = [log["surer"] for log in run.state.log_history if "surer" in log]
    assert logged == [1.0, 1.0]  # with a margin of -10 nats every token with a teacher counts
    written = [row for stem, row in kept if stem == "rollouts" and row["context"]["kind"] != "none"]
    assert written
    for row in written:
        assert sum(row["signals"]["surer"]) == row["surer_tokens"] == sum(row["generated"])


def template():
    (block,) = re.findall(r"```yaml\n(# my.yaml.*?)```", TEXT, re.DOTALL)
    return yaml.safe_load(block)["context_template"]


def hints_trainer(folder, path, keep=None, **changes):
    data = rows(8).map(lambda row: {"hint": f"begin with {row['problem_id']}"})
    return ErrataTrainer(
        build_model(len(TOKENIZER)),
        [verifier],
        ErrataConfig(**settings(folder, max_steps=8, context_template=template(), **changes)),
        method=methods.get(f"{path}:Hints", patience=5, sources=["hint"]),
        train_dataset=data,
        processing_class=TOKENIZER,
        run=(lambda stem, row: None) if keep is None else (lambda stem, row: keep.append(row)),
    )


def test_the_method_with_its_own_store_and_context(tmp_path):
    path, block = code("hints.py", tmp_path)
    assert len(block.splitlines()) < 80
    kept = []
    whole = hints_trainer(tmp_path / "whole", path, kept)
    start = weights(whole.model)
    whole.train()
    assert any(not torch.equal(a, b) for a, b in zip(start.values(), weights(whole.model).values(), strict=True))

    # The column reaches the teacher, and the store decides from when on.
    first = {}
    for row in kept:
        if row["context"]["kind"] == "hint":
            first.setdefault(row["problem_id"], row["step"])
            assert row["context"]["prompt"][-1]["content"].endswith(f" Hint: begin with {row['problem_id']}")
            assert row["failures"] >= 5
        else:
            assert row["failures"] < 5
            assert set(row["signals"]["sd_weight"]) == {0.0}
    assert len(first) > 1
    assert min(first.values()) > 4  # four attempts a visit, and every problem is visited in the first four steps
    logged = [log["failures/all"] for log in whole.state.log_history if "failures/all" in log]
    assert logged == sorted(logged)
    assert logged[-1] == sum(whole.memory.count.values())

    # A run that is resumed ends with the same weights.
    hints_trainer(tmp_path / "cut", path, save_strategy="steps", save_steps=3, save_total_limit=9).train()
    checkpoint = tmp_path / "cut" / "checkpoint-3"
    resumed = hints_trainer(tmp_path / "cut", path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 8
    assert resumed.memory.count == whole.memory.count
    for a, b in zip(weights(resumed.model).values(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="state: has no 'failures'"):
        resumed.memory.load_state_dict({})


def test_the_template_serves_every_source(tmp_path):
    path, _ = code("hints.py", tmp_path)
    kept = []
    run = trainer(
        tmp_path, methods.get(f"{path}:Hints", patience=0), context_template=template(), max_steps=1, keep=kept
    )
    run.train()
    shown = {row["context"]["kind"]: row["context"]["prompt"] for _, row in kept}
    assert " Solution: " in shown["sibling"][-1]["content"]
    assert "Hint" not in shown["sibling"][-1]["content"]


def test_the_verifier_judges(tmp_path):
    path, _ = code("judge.py", tmp_path)
    judge = load_verifier(f"{path}:judge")
    completions = [[{"role": "assistant", "content": c}] for c in ("x = 41", "x = 7")]
    right, wrong = judge(completions=completions, answer=["41", "41"], prompts=rows(2)["prompt"])
    assert right == 1.0
    assert (wrong.score, wrong.kind) == (0.0, "hint")
