"""OPSD through the trainer: the clip of each vocabulary entry, the teacher's own prompt."""

import pytest
import torch
from tests.tiny import CHAT, build_tokenizer
from tests.training.worlds import history, trainer

from errata import methods
from errata.ops.divergence import divergence

# As Qwen3's template: without thinking the generation prompt holds a thought that has ended; with it, nothing.
THINKING = CHAT.replace(
    "{{ '<|assistant|>' }}", "{{ '<|assistant|>' }}{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}"
)


def logp_of(model, prompt, completion):
    """(T,V) in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("clip", [None, 0.05, 1e-6])
def test_the_loss_is_the_mean_of_clipped_forward_kl(tmp_path, clip):
    """Oracle: plain forwards, the terms over the whole vocabulary clamped before their sum."""
    model_args = {"learning_rate": 0.0, "max_steps": 1, "context_template": "opsd"}
    run = trainer(tmp_path, "opsd", method_args={"entry_clip": clip}, **model_args)
    run.train()
    batch, total, tokens = run.generation, 0.0, 0
    prompts = run.encode_prompts([p.prompt for p in batch.prompts], {"enable_thinking": True})
    for row, shown in enumerate(prompts):
        length = int(batch.tokens.completion_mask[row].sum())
        completion = batch.tokens.completion_ids[row, :length].tolist()
        asked = batch.tokens.prompt_ids[row][batch.tokens.prompt_mask[row].bool()].tolist()
        student, teacher = (logp_of(run.model, p, completion) for p in (asked, shown))
        terms = teacher.exp() * (teacher - student)
        total += float((terms if clip is None else terms.clamp(max=clip)).sum())
        tokens += length
    ((loss,),) = history(run, "loss")
    assert loss == pytest.approx(total / tokens, rel=1e-4, abs=2e-6)
    if clip == 1e-6:  # what is left of the sum is its negative terms, as the release says
        assert loss < 0


def test_the_teacher_thinks_and_the_student_does_not(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    monkeypatch.setattr("tests.training.worlds.TOKENIZER", tokenizer)
    tokenizer.chat_template = THINKING
    seen = []

    def watched(prompts, completions):
        seen.extend(prompts)
        return built(prompts, completions)

    from errata.training import teacher_pass

    built = teacher_pass.teacher_sequences
    monkeypatch.setattr(teacher_pass, "teacher_sequences", watched)
    run = trainer(
        tmp_path,
        "opsd",
        max_steps=1,
        context_template=None,
        max_completion_length=4,
        chat_template_kwargs={"enable_thinking": False},
    )
    run.train()
    student = tokenizer.decode(run.generation.tokens.prompt_ids[0])
    assert student.endswith("<|assistant|><think></think>")
    told = [tokenizer.decode(ids) for ids in seen]
    assert len(told) == 8
    for text in told:
        assert text.endswith("<|assistant|>")
        assert "start of the solution ---\nabc" in text  # the method's own wording, as the recipe names none
        assert "do not quote" in text


def test_a_clip_of_cross_entropy_is_refused_at_once():
    with pytest.raises(ValueError, match="entry_clip: a term of forward_ce"):
        methods.get("opsd", divergence="forward_ce")
    with pytest.raises(ValueError, match="teacher_chat_template_kwargs: must be a mapping"):
        methods.get("opsd", teacher_chat_template_kwargs="thinking")


def test_where_the_teacher_is_sure_the_clip_leads_away_from_it():
    """Teacher (.99, .01), student (1/2, 1/2). The first term, .676, is clipped and has no gradient; of the second, -.039, the
    gradient is -.01 * d log pi_S(2) = (+.005, -.005): a step raises the token that the teacher thinks unlikely."""
    teacher = torch.tensor([0.99, 0.01], dtype=torch.float64).log()
    for clip, gradient in [(0.05, [0.005, -0.005]), (None, [-0.49, 0.49])]:
        student = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        divergence(student, teacher, "forward_kl", entry_clip=clip).backward()
        assert student.grad.tolist() == pytest.approx(gradient, abs=1e-9)
