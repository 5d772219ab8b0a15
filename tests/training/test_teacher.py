"""The three teachers: where they start, how they follow, what a checkpoint keeps; full weights and LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer, weights

from errata.experts import SelfTeacher

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def nudged(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1.0)


def test_ema_follows_by_its_rate():
    model = build_model(len(TOKENIZER))
    before = weights(model)
    teacher = SelfTeacher(model, "ema", 0.25)
    nudged(model)
    teacher.update()
    for name, p in weights(teacher.separate).items():
        torch.testing.assert_close(p, before[name] + 0.25)
    teacher.freeze()
    nudged(model)
    teacher.update()
    torch.testing.assert_close(weights(teacher.separate)["model.norm.weight"], before["model.norm.weight"] + 0.25)


def test_frozen_stays_and_live_is_the_student():
    model = build_model(len(TOKENIZER))
    before = weights(model)
    frozen, live = SelfTeacher(model, "frozen"), SelfTeacher(model, "live")
    nudged(model)
    frozen.update()
    assert all(torch.equal(p, before[n]) for n, p in weights(frozen.separate).items())
    assert live.separate is None
    with live.acting(model) as acting:
        assert acting is model
        assert not torch.is_grad_enabled()


def test_a_teacher_copied_from_a_patched_student_runs_its_own_weights():
    from errata.training.forward import accept_head_function

    model = build_model(len(TOKENIZER))
    accept_head_function(model)
    teacher = SelfTeacher(model, "frozen").separate
    ids = torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    nudged(model)
    torch.testing.assert_close(teacher(ids).logits, before)
    assert not torch.allclose(model(ids).logits, before)


def lora_model():
    model = get_peft_model(build_model(len(TOKENIZER)), LoraConfig(**LORA))
    with torch.no_grad():  # an adapter that was already trained: B is not zero
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.normal_(0, 0.3)
    return model


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5]])).logits


def test_lora_ema_starts_from_the_students_adapter():
    model = lora_model()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    teacher = SelfTeacher(model, "ema", 0.5)
    student = logits_of(model)
    with teacher.acting(model) as acting:
        torch.testing.assert_close(logits_of(acting), student)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable

    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".default." in n:
                p.add_(1.0)
    teacher.update()
    named = dict(model.named_parameters())
    for n, p in before.items():
        torch.testing.assert_close(named[n.replace(".default.", ".teacher.")].data, p + 0.5)


def test_lora_frozen_is_the_base():
    model = lora_model()
    base = build_model(len(TOKENIZER))
    with SelfTeacher(model, "frozen").acting(model) as acting:
        torch.testing.assert_close(logits_of(acting), logits_of(base))
    assert not torch.allclose(logits_of(model), logits_of(base))


def test_save_and_load(tmp_path):
    model = build_model(len(TOKENIZER))
    teacher = SelfTeacher(model, "ema", 0.5)
    nudged(model)
    teacher.update()
    teacher.save(tmp_path)
    other = SelfTeacher(build_model(len(TOKENIZER)), "ema", 0.5)
    other.load(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(other.separate).values(), weights(teacher.separate).values(), strict=True)
    )
    (tmp_path / "teacher.safetensors").unlink()
    with pytest.raises(ValueError, match="written without an EMA teacher"):
        other.load(tmp_path)


@pytest.mark.parametrize("kind", ["live", "frozen", "ema"])
def test_lora_trains_and_resumes(tmp_path, kind):
    def run(folder, **changes):
        return trainer(
            folder, "distil", teacher=kind, teacher_rate=0.3, peft_config=LoraConfig(**LORA), max_steps=4, **changes
        )

    whole = run(tmp_path / "a")
    whole.train()
    first = run(tmp_path / "b", save_strategy="steps", save_steps=2)
    first.train()
    second = run(tmp_path / "b")
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for (n, a), b in zip(weights(second.model).items(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b), n


def test_only_the_students_adapter_learns(tmp_path):
    run = trainer(tmp_path, "distil", teacher="ema", peft_config=LoraConfig(**LORA), max_steps=1)
    before = weights(run.model)
    run.train()
    moved = {n for n, p in weights(run.model).items() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in n for n in moved)
