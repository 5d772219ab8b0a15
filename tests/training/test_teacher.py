"""The self-teachers in training: where they start, how they follow, what a checkpoint keeps; full weights and LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, history, trainer, weights

from errata.experts import SelfTeacher
from errata.methods.base import TEACHERS

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


def test_lora_frozen_is_the_base_of_a_new_adapter():
    model = get_peft_model(build_model(len(TOKENIZER)), LoraConfig(**LORA))
    base = build_model(len(TOKENIZER))
    teacher = SelfTeacher(model, "frozen")
    nudged(model)
    with teacher.acting(model) as acting:
        torch.testing.assert_close(logits_of(acting), logits_of(base))
    assert not torch.allclose(logits_of(model), logits_of(base))


def test_lora_frozen_is_the_model_of_a_trained_adapter():
    model = lora_model()
    before, base = logits_of(model), build_model(len(TOKENIZER))
    teacher = SelfTeacher(model, "frozen")
    nudged(model)
    with teacher.acting(model) as acting:
        torch.testing.assert_close(logits_of(acting), before)
    assert not torch.allclose(before, logits_of(base))
    assert not torch.allclose(logits_of(model), before)


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
    with pytest.raises(ValueError, match="written without a teacher of kind ema"):
        other.load(tmp_path)


@pytest.mark.parametrize("kind", TEACHERS)
def test_lora_trains_and_resumes(tmp_path, kind):
    def run(folder, **changes):
        return trainer(
            folder,
            "distil",
            teacher=kind,
            teacher_rate=0.3,
            teacher_sync_steps=2,
            peft_config=LoraConfig(**LORA),
            max_steps=4,
            **changes,
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


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", TEACHERS)
def test_each_kinds_own_accuracy_is_measured(tmp_path, kind, adapted):
    kept = []
    lora = {"peft_config": LoraConfig(**LORA)} if adapted else {}
    changes = {"teacher": kind, "teacher_sync_steps": 1, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer(tmp_path, "distil", eval_rows=4, keep=kept, **changes, **lora).train()
    (row,) = [row for stem, row in kept if stem == "eval"]
    assert 0 <= row["teacher_accuracy"] <= 1


def losses(folder, **changes):
    run = trainer(folder, "distil", max_steps=3, **changes)
    run.train()
    return [loss for (loss,) in history(run, "loss")]


def test_a_trust_region_at_its_ends_is_the_live_and_the_frozen_teacher(tmp_path):
    live, frozen = losses(tmp_path / "l", teacher="live"), losses(tmp_path / "f", teacher="frozen")
    assert live != pytest.approx(frozen, rel=1e-4)
    for weight, expected in ((0.0, live), (1.0, frozen)):
        mixed = losses(tmp_path / str(weight), teacher="trust_region", teacher_base_weight=weight)
        assert mixed == pytest.approx(expected, rel=1e-4)


def test_where_a_teacher_is_kept_changes_nothing(tmp_path):
    common = {"teacher": "ema", "teacher_rate": 0.3}
    assert losses(tmp_path / "a", **common) == losses(tmp_path / "b", teacher_device="cpu", **common)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "sync"}, "teacher_sync_steps: None"),
        (
            {"teacher": "sync", "teacher_sync_steps": 3, "steps_per_generation": 2},
            "within a generation batch, which lasts 2",
        ),
        (
            {"teacher": "live", "teacher_freeze_below": 0.5},
            "teacher_freeze_below: a live teacher does not follow the student",
        ),
        ({"teacher": "live", "teacher_dtype": "bfloat16"}, "teacher_dtype: the teacher has no weights of its own"),
        ({"teacher": "nobody"}, "teacher: 'nobody' is none of live, frozen, ema, sync, trust_region"),
        ({"teacher_dtype": "float16"}, "teacher_dtype: 'float16' is none of float32, bfloat16"),
        ({"teacher_device": "cuda"}, "teacher_device: 'cuda' is none of cpu"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, "distil", **changes)
