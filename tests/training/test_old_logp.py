"""Old and new log-probs of a policy that has not moved are the same numbers, whatever its precision: one op computes both."""

import pytest
import torch
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer

TWICE = {"num_iterations": 2}
SPLIT = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}


def differences(folder, **changes):
    """|new - old| of all tokens at every use of two generation batches; with a learning rate of 0."""
    bits = changes.pop("weights", torch.float32)
    model = build_model(len(TOKENIZER), hidden=64).to(bits)
    t = trainer(folder, "sdpo", model=model, learning_rate=0.0, max_steps=4, **changes)
    found, after = [], t._after_loss

    def after_loss(batch, scores, *rest):
        off = (scores.student_logp - batch.tokens.old_logp).abs()[batch.tokens.mask]
        found.append(off)
        after(batch, scores, *rest)

    t._after_loss = after_loss
    t.train()
    assert len(found) in (4, 8)
    return torch.cat(found)


@pytest.mark.parametrize("uses", [TWICE, SPLIT], ids=["two iterations", "two steps"])
@pytest.mark.parametrize(
    "precision", [{}, {"bf16": True}, {"weights": torch.bfloat16}], ids=["float32", "autocast", "bfloat16 weights"]
)
def test_an_unmoved_policy_has_ratio_one(tmp_path, uses, precision):
    assert float(differences(tmp_path, **uses, **precision).max()) < 1e-5


def test_a_policy_that_trls_own_loss_trains_keeps_trls(tmp_path):
    """There TRL computes both."""
    assert trainer(tmp_path, "grpo", entropy_coef=0.01, num_iterations=2).sampled_logp(None) is None
