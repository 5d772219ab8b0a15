"""A policy that arrives with a trained adapter, adapters of any name and kind, and those that are refused."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tests.experts.test_self_teacher import IDS, LORA, bytes_held, expect, logits_of, scores_of, trained
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer, weights

from errata.experts import SelfTeacher
from errata.experts.adapters import changes_nothing, check_adapter
from errata.training.forward import accept_head_function, check_scores, head_of

KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "head": {"modules_to_save": ["lm_head"]},
    "tied tokens": {"trainable_token_indices": [40, 41, 50]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [40, 41]}},
}
"""Tokens 40, 41 and 50 are among ``IDS``."""


def adapted(name="mine", *, trained_before=True, **changes):
    torch.manual_seed(1)
    base = build_model(len(TOKENIZER))
    if changes.get("bias"):
        base.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    model = get_peft_model(base, LoraConfig(**{**LORA, **changes}), adapter_name=name).double()
    if trained_before:
        trained(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["default", "mine"])
def test_a_teacher_of_a_trained_adapter_is_its_model(kind, name):
    student = adapted(name, **KINDS[kind])
    before = logits_of(student)
    teachers = {
        "frozen": SelfTeacher(student, "frozen"),
        "sync": SelfTeacher(student, "sync", sync_steps=1),
        "live": SelfTeacher(student, "live"),
    }
    torch.testing.assert_close(logits_of(student), before)
    trained(student)
    now = logits_of(student)
    assert float((now - before).abs().max()) > 0.1
    expect(scores_of(teachers["live"], student), now)
    for teacher in ("frozen", "sync"):
        expect(scores_of(teachers[teacher], student), before)
    teachers["sync"].update()
    expect(scores_of(teachers["sync"], student), now)
    expect(scores_of(teachers["frozen"], student), before)
    torch.testing.assert_close(logits_of(student), now)
    assert {
        n.split(".")[-2 if n.endswith("weight") else -1] for n, p in student.named_parameters() if p.requires_grad
    } == {name}


def test_a_trust_region_of_a_trained_adapter_stays_near_its_model():
    student = adapted()
    before = logits_of(student)
    teacher = SelfTeacher(student, "trust_region", base_weight=0.7)
    trained(student)
    expect(scores_of(teacher, student), 0.3 * logits_of(student) + 0.7 * before)
    with teacher.generating(student) as model:
        torch.testing.assert_close(logits_of(model), 0.3 * logits_of_adapter(student) + 0.7 * before)


def logits_of_adapter(student):
    """Of the student alone, inside a context that mixes."""
    inner = student.get_base_model()
    mixed = inner.__dict__.pop("forward")
    try:
        return logits_of(student)
    finally:
        inner.forward = mixed


def test_an_average_follows_an_adapter_of_any_name():
    student = adapted("mine")
    teacher = SelfTeacher(student, "ema", 0.25)
    first = {n: p for n, p in weights(student).items() if ".mine." in n}
    trained(student)
    teacher.update()
    named = dict(student.named_parameters())
    assert len(first) == 8
    for n, p in first.items():
        torch.testing.assert_close(named[n.replace(".mine.", ".teacher.")], 0.75 * p + 0.25 * named[n])


def test_a_policy_whose_adapter_is_called_teacher():
    student = adapted("teacher")
    before = logits_of(student)
    teacher = SelfTeacher(student, "ema", 0.0)
    trained(student)
    teacher.update()
    expect(scores_of(teacher, student), before)


@pytest.mark.parametrize("kind", ["frozen", "trust_region"])
def test_a_new_adapter_costs_no_memory(kind):
    """The model without it is the first policy."""

    def extra(student):
        before = bytes_held(student, SelfTeacher(student, "live"))
        return bytes_held(student, SelfTeacher(student, kind)) - before

    assert extra(adapted(trained_before=False)) == 0
    before = adapted()
    adapter = sum(p.numel() * 8 for n, p in before.named_parameters() if "lora_" in n)
    assert extra(before) == adapter > 0


def test_what_a_new_adapter_changes():
    assert changes_nothing(adapted(trained_before=False), "mine")
    assert changes_nothing(adapted(trained_before=False, modules_to_save=["lm_head"]), "mine")
    assert not changes_nothing(adapted(trained_before=False, init_lora_weights="pissa"), "mine")
    assert not changes_nothing(adapted(), "mine")
    student = adapted(trained_before=False, modules_to_save=["lm_head"])
    with torch.no_grad():
        dict(student.named_parameters())["base_model.model.lm_head.modules_to_save.mine.weight"][0, 0] += 1
    assert not changes_nothing(student, "mine")


@pytest.mark.parametrize("kind", ["tied tokens", "tokens", "head"])
def test_gradients_of_what_an_adapter_trains_beside_lora(kind):
    """By the scores' way, hidden states and head, as by the model's own logits."""
    student = adapted(**KINDS[kind])

    def gradients(loss):
        student.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    own = gradients(student(IDS).logits.log_softmax(-1)[..., 40].sum())
    accept_head_function(student.get_base_model())
    check_scores(student.get_base_model())

    def loss_of(hidden, head):
        return torch.nn.functional.linear(hidden, head.weight, head.bias).log_softmax(-1)[..., 40].sum()

    ours = gradients(student(input_ids=IDS, attention_mask=torch.ones_like(IDS), with_head=loss_of))
    assert own.keys() == ours.keys()
    assert len(own) > 8
    for name, gradient in own.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_right_live_and_refused_elsewhere(bias):
    student = adapted(bias=bias, trained_before=False)
    live = SelfTeacher(student, "live")
    trained(student)
    expect(scores_of(live, student), logits_of(student))
    for kind in ("frozen", "ema", "trust_region"):
        with pytest.raises(
            ValueError, match=r"peft_config: .*q_proj.*bias' is trained beside .* set bias: none, or use"
        ):
            SelfTeacher(student, kind)


def test_what_is_refused_before_compute(tmp_path):
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(
        ValueError, match=r"peft_config: PROMPT_TUNING puts trained vectors before the prompt.* use LoRA"
    ):
        trainer(tmp_path, "sdpo", peft_config=prompts)
    with pytest.raises(
        ValueError, match="beta: TRL makes its reference of the adapter called 'default', and this one is called 'mine'"
    ):
        trainer(tmp_path, "grpo", model=adapted(), beta=0.1)
    student = adapted()
    student.add_adapter("second", LoraConfig(**LORA))
    check_adapter(student)
    student.base_model.set_adapter(["mine", "second"])
    with pytest.raises(ValueError, match=r"model: has 2 active adapters \(mine, second\)"):
        check_adapter(student)
    plain = build_model(len(TOKENIZER))
    plain.add_adapter(LoraConfig(**LORA))
    with pytest.raises(ValueError, match="model: its adapter was loaded by Transformers"):
        check_adapter(plain)
    check_adapter(build_model(len(TOKENIZER)))


def test_a_resumed_run_keeps_the_frozen_teacher_of_a_trained_adapter(tmp_path):
    """Two steps at once, or one and one: the teacher is the first policy in both."""

    def run():
        saves = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        return trainer(tmp_path / "a", "sdpo", model=adapted().float(), teacher="frozen", **saves)

    whole = run()
    whole.train()
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    found = {n: p for n, p in weights(again.model).items() if "lora_" in n}
    for name, value in weights(whole.model).items():
        if name in found:
            torch.testing.assert_close(found[name], value, msg=name)
    assert head_of(whole.model.get_base_model()).bias is None
