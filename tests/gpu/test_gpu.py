"""What a GPU must do as a CPU does. ``pytest -m gpu`` runs these on a CUDA device; without one, on the CPU where they can.

The float64 answers are computed on the CPU from the same rounded inputs.
"""

import math

import pytest
import torch
from peft import LoraConfig
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, history, trainer, weights

from errata.ops import divergence as plain
from errata.ops.fused import workspace
from errata.ops.scores import DivergenceSettings, Head, ModelStates, Objective, Streams, fused_loss, token_scores

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
B, T, H, V = 2, 40, 64, 3000


def problem(dtype, seed=0):
    """(student, teacher, tokens, streams, mask) on the device, the student's tensors as leaves."""
    generator = torch.Generator().manual_seed(seed)
    hidden, its = (torch.randn(B, T, H, generator=generator) for _ in range(2))
    weight, other = (torch.randn(V, H, generator=generator) * H**-0.5 for _ in range(2))
    hidden, weight = (x.to(DEVICE, dtype).requires_grad_() for x in (hidden, weight))
    tokens = torch.randint(0, V, (B, T), generator=generator).to(DEVICE)
    advantage, rl, sd = (torch.rand(B, T, generator=generator).to(DEVICE) for _ in range(3))
    mask = (torch.rand(B, T, generator=generator) > 0.2).to(DEVICE)
    teacher = ModelStates(its.to(DEVICE, dtype), Head(other.to(DEVICE, dtype)))
    return ModelStates(hidden, Head(weight)), teacher, tokens, Streams(advantage, rl, sd), mask


def exact(student, teacher, tokens, streams, mask, kind):
    """Loss and the gradients by hidden states and head, in float64 with all logits."""
    hidden, weight = (x.detach().double().cpu().requires_grad_() for x in (student.hidden, student.head.weight))
    with torch.no_grad():
        its = teacher.hidden.double().cpu() @ teacher.head.weight.double().cpu().t()
    logits = hidden @ weight.t()
    value = plain.divergence(logits, its, kind)
    logp = logits.log_softmax(-1).gather(-1, tokens.cpu()[..., None])[..., 0]
    ratio = (logp - logp.detach()).exp()
    each = streams.sd_weight.cpu() * value - streams.rl_weight.cpu() * streams.advantage.cpu() * ratio
    loss = (each * mask.cpu()).sum()
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def loss_of(parts, kind):
    student, teacher, tokens, streams, mask = parts
    loss, _ = fused_loss(
        student, teacher, tokens, streams, mask=mask, objective=Objective(DivergenceSettings(kind, 0.5))
    )
    return loss, *torch.autograd.grad(loss, (student.hidden, student.head.weight))


def off(found, expected):
    return float((found.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", plain.KINDS)
def test_the_fused_loss_and_its_gradients(dtype, kind):
    parts = problem(dtype)
    found, expected = loss_of(parts, kind), exact(*parts, kind)
    assert off(found[0], expected[0]) < (1e-5 if dtype == torch.float32 else 1e-3)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        # bfloat16 rounds dL/dlogits and the results to 8 bits
        assert off(mine, theirs) < (1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores(dtype):
    student, teacher, tokens, _, mask = problem(dtype)
    found = token_scores(
        student.hidden, student.head, teacher.hidden, teacher.head, tokens, mask=mask, divergence="forward_ce"
    )
    p, q = (m.hidden.detach().double() @ m.head.weight.detach().double().t() for m in (student, teacher))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    at = tokens[..., None]
    expected = (p.gather(-1, at)[..., 0], q.gather(-1, at)[..., 0], -(p.exp() * p).sum(-1), -(q.exp() * q).sum(-1))
    for mine, theirs in zip(found, (*expected, -(q.exp() * p).sum(-1)), strict=True):
        torch.testing.assert_close(mine.double()[mask], theirs[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles_are_one(dtype, monkeypatch):
    whole = loss_of(problem(dtype), "forward_ce")
    monkeypatch.setitem(workspace.TILE_BYTES, DEVICE.type, 400_000)
    monkeypatch.setitem(workspace.BLOCK_ELEMENTS, DEVICE.type, 9_000)
    tiled = loss_of(problem(dtype), "forward_ce")
    for a, b in zip(tiled, whole, strict=True):
        assert off(a, b.double().cpu()) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.skipif(not CUDA, reason="streams need a CUDA device")
def test_on_another_stream_it_is_the_same():
    here = loss_of(problem(torch.bfloat16), "forward_ce")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        there = loss_of(problem(torch.bfloat16), "forward_ce")
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device's memory statistics")
def test_no_logits_of_all_tokens_are_held():
    torch.cuda.empty_cache()
    hidden = torch.randn(1, 4096, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(151_936, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    tokens = torch.zeros(1, 4096, dtype=torch.long, device=DEVICE)
    ones = torch.ones(1, 4096, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    student, teacher = ModelStates(hidden, Head(weight)), ModelStates(hidden.detach(), Head(weight.detach()))
    fused_loss(student, teacher, tokens, Streams(None, None, ones))[0].backward()
    # float32 logits of both models would be 5.0 GB; a tile is 2 GiB
    assert torch.cuda.max_memory_allocated() - before < 3.2e9


def on_device(folder, method, **changes):
    """Two optimizer steps of a tiny policy on the device; the trainer and the weights before."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    model = build_model(len(TOKENIZER)).to(dtype)
    made = trainer(folder, method, model=model, **{"max_steps": 2, "use_cpu": not CUDA, "bf16": CUDA, **changes})
    before = weights(made.model)
    made.train()
    return made, before


def learned(made, before):
    assert all(math.isfinite(x) for pair in history(made, "loss", "grad_norm") for x in pair)
    assert any(g > 0 for (g,) in history(made, "grad_norm"))
    assert {p.device.type for p in made.model.parameters()} == {DEVICE.type}
    after = weights(made.model)
    assert any(not torch.equal(after[name].cpu(), before[name].cpu()) for name in before)


@pytest.mark.parametrize("method", ["grpo", "sdpo", "sdpo-science", "srpo", "distil", "distil-exact", "drift"])
def test_a_step_of_each_method(tmp_path, method):
    args = {"warmup_steps": 0} if method == "drift" else {}
    learned(*on_device(tmp_path, method, method_args=args))


@pytest.mark.parametrize("teacher", ["live", "frozen", "ema", "trust_region"])
def test_a_step_with_each_teacher(tmp_path, teacher):
    made, before = on_device(tmp_path, "distil", teacher=teacher)
    learned(made, before)
    if teacher == "frozen":
        kept = dict(made.teacher.separate.named_parameters())
        assert all(torch.equal(kept[name].cpu(), before[name].cpu()) for name in before)


@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_a_step_of_an_adapter(tmp_path, teacher):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    learned(*on_device(tmp_path, "distil", peft_config=config, teacher=teacher))


def test_a_teacher_that_waits_on_the_cpu(tmp_path):
    made, before = on_device(tmp_path, "distil", teacher="frozen", teacher_device="cpu")
    learned(made, before)
    assert {p.device.type for p in made.teacher.separate.parameters()} == {"cpu"}
