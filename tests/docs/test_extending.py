"""The worked examples of docs/extending.md run as they stand."""

import re
from pathlib import Path

import torch
from tests.training.worlds import rows, trainer

from errata import methods
from errata.feedback import load_verifier

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
    assert all("surer" in row["signals"] for stem, row in kept if stem == "rollouts")


def test_the_verifier_judges(tmp_path):
    path, _ = code("judge.py", tmp_path)
    judge = load_verifier(f"{path}:judge")
    completions = [[{"role": "assistant", "content": c}] for c in ("x = 41", "x = 7")]
    right, wrong = judge(completions=completions, answer=["41", "41"], prompts=rows(2)["prompt"])
    assert right == 1.0
    assert (wrong.score, wrong.kind) == (0.0, "hint")
