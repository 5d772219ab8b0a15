"""A run that was killed resumes to the identical result."""

import shutil

import pytest
import torch
from tests.training.worlds import history, trainer, weights

from errata.training.checkpoint import complete_checkpoints

RUNS = {
    "distil, EMA teacher": ("distil", {"teacher": "ema", "teacher_rate": 0.3}, {}),
    "a synced teacher": ("distil", {"teacher": "sync", "teacher_sync_steps": 2}, {}),
    "a trust-region teacher": ("sdpo", {"teacher": "trust_region", "teacher_base_weight": 0.5}, {}),
    "an EMA teacher in bfloat16 on the CPU": (
        "distil",
        {"teacher": "ema", "teacher_rate": 0.05, "teacher_dtype": "bfloat16", "teacher_device": "cpu"},
        {},
    ),
    "drift, memory and curriculum": ("drift", {}, {"warmup_steps": 2}),
    "inside a generation batch": ("sdpo", {"steps_per_generation": 4, "teacher_rate": 0.3}, {}),
    "evaluating meanwhile": ("distil", {"eval_strategy": "steps", "eval_steps": 1, "eval_rows": 4}, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_equals_uninterrupted(tmp_path, name):
    method, changes, method_args = RUNS[name]
    common = {"max_steps": 6, "method_args": method_args, **changes}
    whole = trainer(tmp_path / "whole", method, save_strategy="no", **common)
    whole.train()

    first = trainer(tmp_path / "cut", method, save_strategy="steps", save_steps=3, **common)
    first.train()
    for path in (tmp_path / "cut").glob("checkpoint-6"):
        shutil.rmtree(path)
    (checkpoint,) = complete_checkpoints(tmp_path / "cut")
    assert checkpoint.name == "checkpoint-3"

    kept = []
    second = trainer(tmp_path / "cut", method, save_strategy="no", keep=kept, **common)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.state.global_step == 6
    torch.testing.assert_close(
        torch.tensor(history(second, "loss", "grad_norm", "reward")[-3:]),
        torch.tensor(history(whole, "loss", "grad_norm", "reward")[-3:]),
        atol=0,
        rtol=0,
    )
    for a, b in zip(weights(second.model).values(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b)
    if whole.teacher.separate is not None:
        for a, b in zip(
            weights(second.teacher.separate).values(), weights(whole.teacher.separate).values(), strict=True
        ):
            assert torch.equal(a, b)
    assert second.memory.state_dict() == whole.memory.state_dict()
    assert {row["step"] for stem, row in kept if stem == "rollouts"} == {4, 5, 6}


def test_a_torn_checkpoint_is_not_resumed_from(tmp_path):
    run = trainer(tmp_path, "sdpo", save_strategy="steps", save_steps=2, max_steps=4)
    run.train()
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_resuming_with_fewer_processes_is_refused(tmp_path):
    """Each process reads its own file, so the others' would be left unread."""
    run = trainer(tmp_path, "sdpo", save_strategy="steps", save_steps=1, max_steps=1)
    run.train()
    position = tmp_path / "checkpoint-1" / "errata_state" / "position_0.pt"
    saved = torch.load(position, weights_only=False)
    assert saved["processes"] == 1
    torch.save({**saved, "processes": 2}, position)
    again = trainer(tmp_path, "sdpo", max_steps=2)
    with pytest.raises(ValueError, match="was written by 2 processes, and there are 1 now"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resuming_with_another_teacher_is_refused(tmp_path):
    trainer(tmp_path, "sdpo", save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(ValueError, match="the checkpoint's was ema, this run's is frozen"):
        trainer(tmp_path, "sdpo", teacher="frozen", max_steps=4).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
