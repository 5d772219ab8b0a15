"""How a generation batch is cut into micro-batches changes nothing but memory."""

import pytest
import torch
from tests.training.worlds import history, trainer, weights

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
