"""A generation batch that serves several optimizer steps keeps the teacher of the moment it was sampled: states and head."""

import pytest
import torch
from peft import LoraConfig
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
TWO_STEPS = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
TWICE = {"num_iterations": 2}


@pytest.mark.parametrize("reuse", [TWICE, TWO_STEPS], ids=["two iterations", "two steps"])
@pytest.mark.parametrize("teacher", ["live", "ema", "trust_region"])
def test_each_use_reads_the_states_with_the_head_of_their_moment(tmp_path, teacher, reuse):
    t = trainer(tmp_path, "distil", teacher=teacher, teacher_rate=0.5, learning_rate=3e-2, max_steps=2, **reuse)
    pass_, expected, errors, heads = t.on_rollouts, {}, [], []

    def on_rollouts(rows, tokens):
        """With the teacher's log-probabilities by plain log_softmax, before any weight has moved."""
        batch = pass_(rows, tokens)
        own = t.model.get_output_embeddings().weight.detach()
        head = t.teacher.separate.get_output_embeddings().weight if teacher == "ema" else own
        if teacher == "trust_region":
            head = torch.cat([own, t.teacher.separate.get_output_embeddings().weight], dim=1)
        heads.append(own.clone())
        for i, (rollout, state) in enumerate(zip(batch.rollouts, batch.teacher.states, strict=True)):
            if state is not None:
                logp = (state @ head.T).log_softmax(-1)
                expected[rollout.index] = (
                    logp.gather(1, tokens.completion_ids[i, : len(state), None]).squeeze(1).clone()
                )
        return batch

    after = t._after_loss

    def after_loss(batch, scores, *rest):
        for i, rollout in enumerate(batch.rollouts):
            if rollout.index in expected:
                known = expected[rollout.index]
                errors.append(float((scores.teacher_logp[i, : len(known)] - known).abs().max()))
        after(batch, scores, *rest)

    t.on_rollouts, t._after_loss = on_rollouts, after_loss
    t.train()
    assert len(heads) == 1
    assert float((t.model.get_output_embeddings().weight - heads[0]).abs().max()) > 1e-2  # the head has moved
    assert len(errors) == len(expected) * t.num_iterations > 0
    assert max(errors) < 1e-5


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"teacher": "live", **TWICE}, True),
        ({"teacher": "frozen", **TWICE}, False),
        ({"teacher": "live"}, False),  # the batch serves one step
        ({"teacher": "live", "steps_per_generation": 1, "gradient_accumulation_steps": 2}, False),
        ({"teacher": "ema", "peft_config": LORA, **TWICE}, False),  # the adapter leaves the head as it is
        ({"teacher": "sync", "teacher_sync_steps": 2, **TWICE}, False),
    ],
    ids=["live", "frozen", "one step", "two batches a step", "LoRA", "sync"],
)
def test_a_copy_of_the_head_is_kept_only_where_the_head_will_change(tmp_path, settings, kept):
    t = trainer(tmp_path, "distil", model=build_model(len(TOKENIZER)), max_steps=1, **settings)
    t.train()
    head = t.generation.teacher.head
    assert (head is not None) == kept
    if kept:
        assert not head.weight.requires_grad
        assert torch.equal(head.weight, build_model(len(TOKENIZER)).get_output_embeddings().weight)
