"""Every kind of self-teacher: its distribution, its memory, its updates, and the settings it rejects."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, weights

from errata.experts import SelfTeacher
from errata.experts.heads import stacked_head
from errata.experts.self_teacher import KINDS
from errata.methods.base import TEACHERS
from errata.ops.scores import Head, token_scores
from errata.training.forward import accept_head_function, head_of

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.tensor([[3, 40, 50, 60, 70], [3, 41, 51, 61, 71]])


def full_model():
    return build_model(len(TOKENIZER)).double()


def lora_model(**changes):
    model = get_peft_model(full_model(), LoraConfig(**{**LORA, **changes}), autocast_adapter_dtype=False)
    with torch.no_grad():  # an adapter that was already trained: B is not zero
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.normal_(0, 0.3)
    return model


MODELS = {"full": full_model, "lora": lora_model}


def trained(model, size=0.3):
    """The student has moved on, by the same amount everywhere or by noise: what matters is that it moved."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * size)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def bare(model):
    return model.get_base_model() if hasattr(model, "peft_config") else model


def scores_of(teacher, student):
    """What the loss sees: the joined states of every part through the teacher's head."""
    by_part = []
    for part in range(teacher.parts):
        with teacher.acting(student, part) as model:
            by_part.append(list(bare(model).base_model(IDS, use_cache=False).last_hidden_state))
    hidden = torch.stack(teacher.join(by_part))
    own = head_of(bare(student))
    student_hidden = torch.zeros(*IDS.shape, own.weight.shape[1], dtype=torch.float64)
    return token_scores(student_hidden, own, hidden, teacher.head(own, head_of), IDS.roll(-1, 1))


def expect(scores, logits):
    logp = logits.double().log_softmax(-1)
    sampled = logp.gather(-1, IDS.roll(-1, 1).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(scores.teacher_logp, sampled, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(scores.teacher_entropy, -(logp.exp() * logp).sum(-1), atol=1e-9, rtol=1e-9)


# -- what it gives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_each_kind_gives_its_own_distribution(build):
    student = build()
    teachers = {
        "live": SelfTeacher(student, "live"),
        "frozen": SelfTeacher(student, "frozen"),
        "trust_region": SelfTeacher(student, "trust_region", base_weight=0.7),
    }
    with teachers["frozen"].acting(student) as base:
        before = logits_of(base)
    trained(student)
    now = logits_of(student)
    assert not torch.allclose(before, now)
    expect(scores_of(teachers["live"], student), now)
    expect(scores_of(teachers["frozen"], student), before)
    expect(scores_of(teachers["trust_region"], student), 0.3 * now + 0.7 * before)


def test_a_head_trained_beside_the_adapter_is_not_the_teachers():
    student = lora_model(modules_to_save=["lm_head"])
    teachers = {kind: SelfTeacher(student, kind) for kind in ("live", "frozen")}
    with teachers["frozen"].acting(student) as base:
        before = logits_of(base)
    trained(student)
    now = logits_of(student)
    assert not torch.allclose(before, now)
    expect(scores_of(teachers["live"], student), now)
    expect(scores_of(teachers["frozen"], student), before)
    synced = SelfTeacher(student, "sync", sync_steps=1)
    trained(student)
    expect(scores_of(synced, student), now)
    synced.update()
    expect(scores_of(synced, student), logits_of(student))


def test_an_adapter_on_the_head_is_refused():
    with pytest.raises(
        ValueError, match=r"lora_target_modules: an adapter on the output embedding .* leave lm_head out"
    ):
        accept_head_function(bare(lora_model(target_modules=["q_proj", "lm_head"])))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_synced_teacher_is_the_student_of_its_last_copy(build):
    student = build()
    teacher = SelfTeacher(student, "sync", sync_steps=3)
    at = [logits_of(student)]
    for _ in range(7):
        trained(student, 0.1)
        at.append(logits_of(student))
        teacher.update()
        copied = at[len(at) - 1 - (len(at) - 1) % 3]
        expect(scores_of(teacher, student), copied)
    teacher.freeze()
    for _ in range(3):
        trained(student, 0.1)
        teacher.update()
    expect(scores_of(teacher, student), at[6])


def test_a_mixture_of_heads_with_biases_and_a_scale():
    torch.manual_seed(0)
    live, base = (Head(torch.randn(11, 6).double(), torch.randn(11).double(), scale=0.25) for _ in "ab")
    h, g = torch.randn(2, 1, 4, 6).double()
    mixed = stacked_head(live, base, 0.4)
    scores = token_scores(h, live, torch.cat([0.6 * h, 0.4 * g], -1), mixed, torch.tensor([[1, 2, 3, 4]]))
    z, u = (0.25 * (x @ head.weight.T + head.bias) for x, head in ((h, live), (g, base)))
    expected = (0.6 * z + 0.4 * u).log_softmax(-1)
    torch.testing.assert_close(scores.teacher_entropy, -(expected.exp() * expected).sum(-1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("cache", [True, False])
def test_a_trust_region_generates_from_its_mixture(build, cache):
    student = build()
    teacher = SelfTeacher(student, "trust_region", base_weight=0.5)
    with teacher.acting(student, part=1) as base:
        before = base(IDS).logits
    trained(student)
    now, forward = logits_of(student), bare(student).__dict__.get("forward")

    prompt = torch.tensor([[0, 3, 40], [3, 41, 51]])  # the first is padded
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache, "pad_token_id": 0, "eos_token_id": 1}
    with teacher.generating(student) as model:
        mask = (prompt != 0).long()
        written = [model.generate(input_ids=prompt, attention_mask=mask, **settings) for _ in range(2)][1]

    for row, start in enumerate((1, 0)):  # step by step, without cache or padding
        ids = prompt[row : row + 1, start:]
        for _ in range(6):
            with teacher.acting(student, part=1) as base:
                z = logits_of(base, ids)
            token = (0.5 * z + 0.5 * logits_of(student, ids))[:, -1].argmax(-1)
            ids = torch.cat([ids, token[:, None]], 1)
            if token == 1:
                break
        assert written[row, start : start + ids.shape[1]].tolist() == ids[0].tolist()
    # Nothing of it stays.
    assert bare(student).__dict__.get("forward") is forward
    torch.testing.assert_close(logits_of(student), now)
    with teacher.acting(student, part=1) as base:
        torch.testing.assert_close(logits_of(base), before)


# -- what it weighs -------------------------------------------------------------------------------------------------


def bytes_held(model, teacher):
    held = [*model.parameters(), *(teacher.separate.parameters() if teacher.separate is not None else ())]
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in held}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_beside_the_students(kind):
    settings = {"sync_steps": 1} if kind == "sync" else {}
    model = build_model(len(TOKENIZER))
    weighs = sum(p.numel() * 4 for p in model.parameters())
    extra = bytes_held(model, SelfTeacher(model, kind, **settings)) - weighs
    assert extra == (0 if kind == "live" else weighs)
    if kind != "live":
        halved = SelfTeacher(model, kind, dtype=torch.bfloat16, **settings)
        assert bytes_held(model, halved) - weighs == weighs // 2
        assert not any(p.requires_grad for p in halved.separate.parameters())
        # The rotary frequencies are no weights: they keep their precision.
        assert {b.dtype for b in halved.separate.buffers()} == {torch.float32}

    adapted = lora_model()
    before = bytes_held(adapted, SelfTeacher(adapted, "live"))
    adapter = sum(p.numel() * 8 for n, p in adapted.named_parameters() if "lora_" in n)
    teacher = SelfTeacher(adapted, kind, **settings)
    assert bytes_held(adapted, teacher) - before == (0 if kind == "live" else adapter)


def test_tied_weights_stay_tied_in_a_copy():
    student = build_model(len(TOKENIZER))
    copy = SelfTeacher(student, "ema", dtype=torch.bfloat16).separate
    assert copy.get_input_embeddings().weight is copy.get_output_embeddings().weight
    assert copy.get_input_embeddings().weight is not student.get_input_embeddings().weight


# -- where it is kept -----------------------------------------------------------------------------------------------


def test_a_teacher_kept_on_another_device_runs_on_the_students():
    student = build_model(len(TOKENIZER))
    teacher = SelfTeacher(student, "ema", 0.5, device="cpu")
    before = {n: p.data_ptr() for n, p in teacher.separate.named_parameters()}
    trained(student)
    student.to("meta")  # stands for a GPU: a device the teacher is not on
    with teacher.acting(student) as acting:
        assert {t.device.type for t in (*acting.parameters(), *acting.buffers())} == {"meta"}
        assert acting(IDS.to("meta")).logits.device.type == "meta"
    assert {n: p.data_ptr() for n, p in teacher.separate.named_parameters()} == before
    assert teacher.head(head_of(student), head_of).weight.device.type == "meta"


def test_a_teacher_comes_home_from_a_failed_forward():
    student = build_model(len(TOKENIZER))
    teacher = SelfTeacher(student, "frozen", device="cpu")
    student.to("meta")
    with pytest.raises(RuntimeError, match="out of memory"), teacher.acting(student):
        raise RuntimeError("out of memory")
    assert {p.device.type for p in teacher.separate.parameters()} == {"cpu"}
    assert torch.is_grad_enabled()


def test_a_teacher_kept_on_the_cpu_follows_there():
    student = build_model(len(TOKENIZER))
    here, there = SelfTeacher(student, "ema", 0.25), SelfTeacher(student, "ema", 0.25, device="cpu")
    trained(student)
    for teacher in (here, there):
        teacher.update()
    for a, b in zip(weights(here.separate).values(), weights(there.separate).values(), strict=True):
        assert torch.equal(a, b)


# -- what a checkpoint keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ema", "sync"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_teacher_goes_on_from_its_checkpoint(tmp_path, kind, dtype):
    def fresh(student):
        return SelfTeacher(student, kind, 0.1, sync_steps=3, dtype=dtype, seed=4)

    student = build_model(len(TOKENIZER))
    teacher = fresh(student)
    for _ in range(4):
        trained(student, 0.1)
        teacher.update()
    teacher.save(tmp_path)
    other_student = build_model(len(TOKENIZER))
    other = fresh(other_student)
    other.load_state_dict(teacher.state_dict())
    other.load(tmp_path)
    other_student.load_state_dict(student.state_dict())
    for t, s in ((teacher, student), (other, other_student)):
        for _ in range(3):
            trained(s, 0.1)
            t.update()
    for a, b in zip(weights(teacher.separate).values(), weights(other.separate).values(), strict=True):
        assert torch.equal(a, b)


# -- what it refuses ------------------------------------------------------------------------------------------------


def test_the_methods_know_the_same_kinds():
    assert TEACHERS == KINDS


def softcapped():
    model = full_model()
    model.config.final_logit_softcapping = 30.0
    return model


@pytest.mark.parametrize(
    ("build", "kind", "settings", "message"),
    [
        (full_model, "best", {}, "teacher: 'best' is none of live, frozen, ema, sync, trust_region"),
        (full_model, "sync", {}, "teacher_sync_steps: None"),
        (full_model, "sync", {"sync_steps": 0}, "teacher_sync_steps: 0"),
        (full_model, "trust_region", {"base_weight": 1.5}, r"teacher_base_weight: 1.5 is not in \[0, 1\]"),
        (full_model, "live", {"dtype": torch.bfloat16}, "teacher_dtype: .*teacher: live is the student"),
        (lora_model, "ema", {"device": "cpu"}, "teacher_device: .*LoRA"),
        (softcapped, "trust_region", {}, "soft-capped head is not linear"),
        (lambda: lora_model(modules_to_save=["lm_head"]), "trust_region", {}, "leave it out of target_modules"),
        (lambda: lora_model(target_modules=["q_proj", "lm_head"]), "trust_region", {}, "one output head"),
    ],
)
def test_invalid_settings_are_named(build, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        SelfTeacher(build(), kind, **settings)
