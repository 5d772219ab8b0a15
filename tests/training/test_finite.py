"""A loss or a weight that is not finite stops the run in its step, by name, and what was saved before stays whole."""

from dataclasses import dataclass, replace

import pytest
import torch
from tests.training.worlds import trainer

from errata.methods.sdpo import SDPO
from errata.training.checkpoint import complete_checkpoints


def test_a_weight_that_becomes_nan_stops_the_run_and_is_not_saved(tmp_path):
    made = trainer(tmp_path, "distil", save_strategy="steps", save_steps=1)
    step = made.training_step

    def poisoned(model, *args, **kwargs):
        loss = step(model, *args, **kwargs)
        if made.state.global_step == 2:
            model.get_input_embeddings().weight.data[5, 0] = torch.nan
        return loss

    made.training_step = poisoned
    with pytest.raises(
        FloatingPointError, match=r"step 3: weight '.*embed_tokens.weight' holds NaN.*resume from the last"
    ):
        made.train()
    assert [p.name for p in complete_checkpoints(tmp_path)][-1] == "checkpoint-2"


@dataclass(frozen=True, kw_only=True)
class Broken(SDPO):
    kind: str = "none"

    def signals(self, batch):
        right = super().signals(batch)
        bad = right.sd_weight.clone()
        bad[1, 0] = torch.nan
        return {
            "none": None,
            "shape": replace(right, rl_weight=right.rl_weight[0]),
            "nan": replace(right, sd_weight=bad),
            "negative": replace(right, rl_weight=right.rl_weight - 1),
            "extra": replace(right, per_rollout={"rate": right.advantage}),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "must return errata.methods.Signals, got NoneType"),
        ("shape", r"rl_weight must be a tensor of shape \(B, T\) = \(8, \d+\), got \(\d+,\)"),
        ("nan", "sd_weight must be finite and at least 0, got nan at token 0 of rollout 1"),
        ("negative", "rl_weight must be finite and at least 0, got -1.0 at token 0 of rollout 0"),
        ("extra", r"per_rollout\['rate'\] must be a tensor of shape \(8,\)"),
    ],
)
def test_wrong_signals_of_a_method_are_named(tmp_path, kind, said):
    with pytest.raises(ValueError, match=f"Broken.signals: {said}"):
        trainer(tmp_path, Broken(kind=kind)).train()


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("student_logp", "policy's log-probability"),
        ("teacher_logp", "distillation term: the teacher's log-probability"),
        ("divergence", "distillation term: the divergence"),
    ],
)
def test_the_term_and_the_rollout_are_named(tmp_path, monkeypatch, field, said):
    from errata.training import trainer as module

    real = module.two_stream_loss

    def poisoned(*args, **kwargs):
        loss, scores = real(*args, **kwargs)
        values = getattr(scores, field).clone()
        batch = args[2]
        row = int(batch.teacher.has_teacher.nonzero()[0]) if field != "student_logp" else 0
        values[row, 0] = torch.nan
        return loss * torch.nan, scores._replace(**{field: values})

    monkeypatch.setattr(module, "two_stream_loss", poisoned)
    made = trainer(tmp_path, "distil")
    with pytest.raises(
        FloatingPointError, match=rf"step 1: the loss is nan, from the .*{said}, first at token 0 of rollout"
    ):
        made.train()
