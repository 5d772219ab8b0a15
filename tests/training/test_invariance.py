"""How a generation batch is cut into micro-batches changes nothing but memory."""

from dataclasses import dataclass, replace

import pytest
import torch
from tests.training.worlds import history, trainer, weights

from errata.methods.distil import DistIL
from errata.ops.fused import workspace

METHODS = {
    "grpo": {},
    "sdpo": {},
    "opsd": {},
    "srpo": {},
    "distil": {},
    "distil-science": {"top_k": 5},
    "distil-math": {"top_k": 5},
    "drift": {"warmup_steps": 1},
}


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_do_not_change_the_step(tmp_path, method):
    def run(size, accumulation):
        t = trainer(
            tmp_path,
            method,
            method_args=METHODS[method],
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            teacher_rate=0.2,
        )
        t.train()
        return torch.tensor(history(t, "loss", "grad_norm", "reward")), torch.cat(
            [p.flatten() for p in weights(t.model).values()]
        )

    whole, final = run(16, 1)
    for size, accumulation in [(8, 2), (4, 4)]:
        found, reached = run(size, accumulation)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
        assert float((reached - final).norm() / final.norm()) < 1e-4


EXACT = {"baseline": "leave_one_out", "discount": 1.0, "credit_limit": None}


@dataclass(frozen=True, kw_only=True)
class PerCost(DistIL):
    """Divides each rollout's credit by its mean cost, so that every token's signal depends on all its tokens' scores."""

    def signals(self, batch):
        found = super().signals(batch)
        cost = torch.where(batch.teacher_mask, batch.scores.divergence, 0.0)
        mean = cost.sum(1) / batch.teacher_mask.sum(1).clamp(min=1)
        return replace(found, advantage=found.advantage / mean.clamp(min=1e-3)[:, None])


@pytest.mark.parametrize("tile_bytes", [312 << 20, 16 * 106 * 4], ids=["one tile", "tiles of 16 tokens or fewer"])
def test_a_credit_divided_by_the_mean_cost(tmp_path, tile_bytes, monkeypatch):
    """In one piece the method decides inside the loss, in micro-batches before it: both have every token's scores."""
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", tile_bytes)
    calls = []
    decide = PerCost.signals

    def counted(self, batch):
        calls.append(len(batch.rollouts))
        return decide(self, batch)

    def run(kind, size, accumulation):
        calls.clear()
        t = trainer(
            tmp_path,
            kind(**EXACT),
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        t.train()
        return torch.tensor(history(t, "loss", "grad_norm"))

    monkeypatch.setattr(PerCost, "signals", counted)
    whole = run(PerCost, 16, 1)
    assert calls == [16, 16]  # once a step, with all rollouts
    parts = run(PerCost, 4, 4)
    assert calls == [16, 16]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert abs(run(DistIL, 16, 1)[0, 1] / whole[0, 1] - 1) > 0.1  # the division matters
