"""The per-entry clip in tiles against autograd on float64 logits, clipped entry by entry as the definition says."""

import math

import pytest
import torch
from tests.ops.problems import Problem, assert_gradients

from errata.ops.scores import DivergenceSettings, Head, ModelStates, Objective, SparseTeacher, fused_loss, token_scores

KINDS = ("forward_kl", "reverse_kl", "js")
ALPHA = 0.3


def terms(p, q, kind):
    """Each entry's term, from probabilities."""
    if kind == "forward_kl":
        return q * (q / p).log()
    if kind == "reverse_kl":
        return p * (p / q).log()
    m = (1 - ALPHA) * p + ALPHA * q
    return ALPHA * q * (q / m).log() + (1 - ALPHA) * p * (p / m).log()


def naive(problem, kind, clip, temperature=1.0, choose=None):
    """(clipped divergence (B,T), whether each entry was cut, leaves), from all logits at once in float64.

    ``choose`` makes buckets (..., k) of both distributions (..., V). By default every token is its own bucket.
    """
    leaves = [x.detach().double().requires_grad_() for x in problem.leaves]

    def softmax(hidden, weight, bias=None):
        z = torch.nn.functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
        z = z * problem.scale
        if problem.softcap is not None:
            z = problem.softcap * torch.tanh(z / problem.softcap)
        return (z / temperature).softmax(-1)

    student = softmax(*leaves)
    teacher = softmax(problem.teacher_hidden, problem.teacher_weight, problem.teacher_bias)
    if choose is not None:
        student, teacher = choose(student, teacher)
    each = terms(student, teacher, kind)
    cut = each > clip
    return torch.where(cut, clip, each).sum(-1) * problem.mask, cut, leaves


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("full_featured", [True, False])
def test_values_and_gradients_are_exact(kind, temperature, full_featured, tiling):
    """With and without bias, scale and soft cap; masked; some of the entries cut."""
    p = Problem() if full_featured else Problem(bias=False, softcap=None, scale=1.0)
    clip = 0.01
    options = {"mask": p.mask, "temperature": temperature}
    scores = token_scores(*p.arguments, divergence=kind, alpha=ALPHA, entry_clip=clip, **options)
    exact, cut, leaves = naive(p, kind, clip, temperature)
    assert 0.005 < cut[p.mask].double().mean() < 0.5
    torch.testing.assert_close(scores.divergence.double(), exact, atol=1e-5, rtol=1e-5)
    weight = torch.randn(p.mask.shape)
    theirs = torch.autograd.grad((weight * exact).sum(), leaves, retain_graph=True)
    assert_gradients(torch.autograd.grad((weight * scores.divergence).sum(), p.leaves), theirs, 1e-4)

    objective = Objective(DivergenceSettings(kind, ALPHA, entry_clip=clip))
    loss, _ = fused_loss(*p.models, p.distilled, objective=objective, **options)
    reference = (p.sd_weight * exact).sum()
    torch.testing.assert_close(loss.double(), reference, atol=1e-5, rtol=1e-5)
    assert_gradients(torch.autograd.grad(loss, p.leaves), torch.autograd.grad(reference, leaves), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_gradient_beside_it_is_not_clipped(kind, tiling):
    p = Problem()
    objective = Objective(DivergenceSettings(kind, ALPHA, entry_clip=0.01))
    loss, scores = fused_loss(*p.models, p.streams, mask=p.mask, objective=objective)
    exact, _, leaves = naive(p, kind, 0.01)
    unclipped, own_leaves = p.exact(kind, ALPHA)
    distilled = torch.autograd.grad((p.sd_weight * exact).sum(), leaves)
    gained = torch.autograd.grad((p.rl_weight * p.advantage * unclipped.student_logp).sum(), own_leaves)
    expected = [d - g for d, g in zip(distilled, gained, strict=True)]
    assert_gradients(torch.autograd.grad(loss, p.leaves), expected, 1e-4)
    for name in ("student_logp", "student_entropy"):
        torch.testing.assert_close(getattr(scores, name).double(), getattr(unclipped, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", ["student_topk", "teacher_topk"])
@pytest.mark.parametrize("tail", [True, False])
def test_topk_supports_clip_each_token_and_the_bucket(kind, support, tail, tiling):
    p, k, clip = Problem(), 9, 0.005 if kind == "js" else 0.02

    def choose(student, teacher):
        chosen = (student if support == "student_topk" else teacher).topk(k, dim=-1).indices

        def close(probabilities):
            held = probabilities.gather(-1, chosen)
            rest = 1 - held.sum(-1, keepdim=True)
            return torch.cat([held, rest], -1) if tail else held / held.sum(-1, keepdim=True)

        return close(student), close(teacher)

    options = {"divergence": kind, "alpha": ALPHA, "support": support, "k": k, "tail": tail, "entry_clip": clip}
    scores = token_scores(*p.arguments, mask=p.mask, **options)
    exact, cut, leaves = naive(p, kind, clip, choose=choose)
    assert 0 < cut[p.mask].double().mean() < 1
    torch.testing.assert_close(scores.divergence.double(), exact, atol=1e-4, rtol=1e-4)
    weight = torch.randn(p.mask.shape)
    ours = torch.autograd.grad((weight * scores.divergence).sum(), p.leaves)
    assert_gradients(ours, torch.autograd.grad((weight * exact).sum(), leaves), 1e-3)


def test_a_sparse_teacher_clips_its_tokens_and_the_bucket():
    p, k = Problem(softcap=None, scale=1.0), 9
    z = torch.nn.functional.linear(p.teacher_hidden, p.teacher_weight, p.teacher_bias).log_softmax(-1).topk(k, dim=-1)
    options = {"divergence": "forward_kl", "entry_clip": 0.02, "mask": p.mask}
    sparse = SparseTeacher(z.indices, z.values, p.mask, tail=True)
    ours = token_scores(*p.arguments[:2], None, None, p.tokens, sparse=sparse, **options)
    theirs = token_scores(*p.arguments, support="teacher_topk", k=k, tail=True, **options)
    torch.testing.assert_close(ours.divergence, theirs.divergence, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", ["full", "student_topk"])
def test_gradcheck(kind, support, tiling):
    p = Problem(b=2, t=5, h=3, h_teacher=2, v=11, dtype=torch.float64)
    objective = Objective(DivergenceSettings(kind, ALPHA, support, 4, entry_clip=0.02))

    def loss(hidden, weight, bias):
        student = ModelStates(hidden, Head(weight, bias, 0.9, 4.0))
        return fused_loss(student, *p.models[1:], p.distilled, mask=p.mask, objective=objective)[0]

    assert torch.autograd.gradcheck(loss, p.leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_above_every_term_is_no_clip(kind, tiling):
    p = Problem()
    clipped, plain = (
        fused_loss(
            *p.models, p.streams, mask=p.mask, objective=Objective(DivergenceSettings(kind, ALPHA, entry_clip=clip))
        )[0]
        for clip in (100.0, None)
    )
    torch.testing.assert_close(clipped, plain, atol=1e-5, rtol=1e-5)
    assert_gradients(torch.autograd.grad(clipped, p.leaves), torch.autograd.grad(plain, p.leaves), 1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_js_are_the_kl_divergences(alpha):
    p = Problem()
    options = {"mask": p.mask, "entry_clip": 0.01}
    js = token_scores(*p.arguments, divergence="js", alpha=alpha, **options)
    kl = token_scores(*p.arguments, divergence="reverse_kl" if alpha else "forward_kl", **options)
    assert torch.equal(js.divergence, kl.divergence)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_a_tight_clip_makes_the_sum_negative(kind):
    """The positive terms are cut to almost nothing; the negative ones stay."""
    p = Problem()
    scores = token_scores(*p.arguments, divergence=kind, entry_clip=1e-6, mask=p.mask)
    exact, _, _ = naive(p, kind, 1e-6)
    torch.testing.assert_close(scores.divergence.double(), exact, atol=1e-5, rtol=1e-5)
    assert (scores.divergence[p.mask] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forbids", ["student", "teacher"])
def test_a_token_that_one_model_forbids_stays_finite(kind, forbids):
    p = Problem(softcap=None, scale=1.0)
    (p.bias.data if forbids == "student" else p.teacher_bias)[3] = -math.inf
    tokens = torch.where(p.tokens == 3, 4, p.tokens)
    scores = token_scores(*p.arguments[:4], tokens, mask=p.mask, divergence=kind, entry_clip=0.05)
    gradients = torch.autograd.grad(scores.divergence.sum(), p.leaves)
    assert all(torch.isfinite(x).all() for x in (scores.divergence, *gradients))
