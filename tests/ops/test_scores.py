"""Fused scores and loss against a float64 computation that holds all logits, and against each other."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.ops.problems import Problem, assert_gradients
from torch.utils.checkpoint import checkpoint

from errata.ops import divergence as plain
from errata.ops.policy_gradient import clipped_surrogate, importance_surrogate
from errata.ops.scores import (
    DivergenceSettings,
    Head,
    ModelStates,
    Objective,
    Streams,
    fused_loss,
    token_scores,
)

KINDS = plain.KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("full_featured", [True, False])
def test_scores_are_exact(kind, temperature, full_featured, tiling):
    p = Problem() if full_featured else Problem(bias=False, softcap=None, scale=1.0)
    scores = token_scores(*p.arguments, divergence=kind, alpha=0.3, mask=p.mask, temperature=temperature)
    exact, leaves = p.exact(kind, 0.3, temperature)
    for mine, theirs in zip(scores, exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
        assert (mine[~p.mask] == 0).all()
    by_logp, by_divergence = torch.randn(2, *p.mask.shape)
    ours = torch.autograd.grad((by_logp * scores.student_logp + by_divergence * scores.divergence).sum(), p.leaves)
    theirs = torch.autograd.grad((by_logp * exact.student_logp + by_divergence * exact.divergence).sum(), leaves)
    assert_gradients(ours, theirs, 1e-4)


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(2, 300)),
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@example(seed=2250, shape=(1, 1, 4, 8, 2), kind="forward_ce", alpha=0.0)  # the gradients of the two parts cancel
@settings(max_examples=40, deadline=None)
def test_random_shapes(seed, shape, kind, alpha):
    b, t, h, h_teacher, v = shape
    p = Problem(seed, b, t, h, h_teacher, v, softcap=None)
    scores = token_scores(*p.arguments, divergence=kind, alpha=alpha, mask=p.mask)
    exact, leaves = p.exact(kind, alpha)
    for mine, theirs in zip(scores, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=2e-5, rtol=1e-5)
    if p.mask.any():
        ours = torch.autograd.grad((scores.student_logp + scores.divergence).sum(), p.leaves)
        # The two parts may cancel nearly, so the error is relative to their sizes and not to their sum's.
        parts = [
            torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (exact.student_logp, exact.divergence)
        ]
        for mine, by_logp, by_divergence in zip(ours, *parts, strict=True):
            error = (mine.double() - (by_logp + by_divergence).double()).norm()
            assert error < 1e-4 * (by_logp.norm() + by_divergence.norm()).double()


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_vocabulary_with_peaked_distributions(kind):
    """V = 151,936 and logits of deviation 6, so that entropies are a few nats."""
    p = Problem(b=1, t=6, h=64, h_teacher=64, v=151_936, bias=False, softcap=None, scale=6 / 8)
    scores = token_scores(*p.arguments, mask=p.mask, divergence=kind)
    exact, leaves = p.exact(kind)
    for mine, theirs in zip(scores, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((scores.student_logp + scores.divergence).sum(), p.leaves)
    theirs = torch.autograd.grad((exact.student_logp + exact.divergence).sum(), leaves)
    assert_gradients(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", ["student_topk", "teacher_topk"])
def test_topk_supports(kind, support, tiling):
    p = Problem()
    scores = token_scores(*p.arguments, divergence=kind, alpha=0.3, mask=p.mask, support=support, k=9)
    exact, leaves = p.exact(kind, 0.3, support=support, k=9)
    torch.testing.assert_close(scores.divergence.double(), exact.divergence, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad((scores.student_logp + 2 * scores.divergence).sum(), p.leaves)
    theirs = torch.autograd.grad((exact.student_logp + 2 * exact.divergence).sum(), leaves)
    assert_gradients(ours, theirs, 1e-3)


def test_a_support_of_everything_is_the_full_vocabulary():
    p = Problem()
    full = token_scores(*p.arguments, mask=p.mask)
    for k in (157, 1000):
        scores = token_scores(*p.arguments, mask=p.mask, support="student_topk", k=k)
        assert torch.equal(scores.divergence, full.divergence)


def composed(p, scores, *, surrogate, importance_clip, token_clip):
    """The fused loss's formula, written with the plain ops."""
    value = plain.clip_tokens(scores.divergence, token_clip)
    logp, old = scores.student_logp, p.old_logp
    before = logp.detach() if old is None else old.to(logp.dtype)
    if importance_clip is not None:
        value = plain.importance_weight(logp, before, clip=importance_clip) * value
    if surrogate == "clipped":
        gain = clipped_surrogate(logp, before, p.advantage)
    else:
        gain = importance_surrogate(logp, before, p.advantage, clip=importance_clip or 2.0)
    return ((p.rl_weight * gain + p.sd_weight * value) * p.mask).sum()


LOSSES = [
    {"surrogate": s, "importance_clip": c, "token_clip": k}
    for s, c, k in itertools.product(["clipped", "importance"], [None, 1.3], [None, 1.0])
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", LOSSES)
@pytest.mark.parametrize("moved", [True, False])
def test_fused_loss_equals_the_composed_and_the_exact(kind, settings, moved, tiling):
    p = Problem()
    if moved:
        p.old_logp = token_scores(*p.arguments, mask=p.mask).student_logp.detach() + 0.3 * torch.randn(p.mask.shape)
    loss, scores = fused_loss(
        *p.models,
        p.streams,
        old_logp=p.old_logp,
        mask=p.mask,
        objective=Objective(DivergenceSettings(kind, 0.3), **settings),
    )
    ours = torch.autograd.grad(2.5 * loss, p.leaves)  # an upstream factor, as gradient accumulation or a scaler give
    assert not any(s.requires_grad for s in scores)

    separate = token_scores(*p.arguments, mask=p.mask, divergence=kind, alpha=0.3)
    same = composed(p, separate, **settings)
    torch.testing.assert_close(loss, same, atol=1e-5, rtol=1e-5)
    assert_gradients(ours, torch.autograd.grad(2.5 * same, p.leaves), 1e-5)

    exact, leaves = p.exact(kind, 0.3)
    reference = composed(p, exact, **settings)
    torch.testing.assert_close(loss.double(), reference, atol=1e-4, rtol=1e-4)
    assert_gradients(ours, torch.autograd.grad(2.5 * reference, leaves), 1e-4)

    for name in ("student_logp", "student_entropy"):
        torch.testing.assert_close(getattr(scores, name).double(), getattr(exact, name), atol=1e-5, rtol=1e-5)
    has_teacher = p.mask & (p.sd_weight != 0)
    for name in ("teacher_logp", "teacher_entropy", "divergence"):
        torch.testing.assert_close(
            getattr(scores, name).double(), getattr(exact, name) * has_teacher, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("support", ["full", "student_topk", "teacher_topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, support, tiling):
    p = Problem(b=2, t=5, h=3, h_teacher=2, v=11, dtype=torch.float64)
    p.old_logp = token_scores(*p.arguments, mask=p.mask).student_logp.detach() + 0.1
    options = {"divergence": kind, "alpha": 0.3, "mask": p.mask, "support": support, "k": 4}

    def scores(hidden, weight, bias):
        s = token_scores(hidden, Head(weight, bias, 0.9, 4.0), *p.arguments[2:], **options)
        return s.student_logp, s.divergence

    def loss(hidden, weight, bias):
        student = ModelStates(hidden, Head(weight, bias, 0.9, 4.0))
        objective = Objective(DivergenceSettings(kind, 0.3, support, 4), clip_high=9.0)
        return fused_loss(student, *p.models[1:], p.streams, mask=p.mask, old_logp=p.old_logp, objective=objective)[0]

    assert torch.autograd.gradcheck(scores, p.leaves)
    assert torch.autograd.gradcheck(loss, p.leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_accumulates_in_float32(dtype, kind):
    """From the same rounded inputs the values are as exact as ever; the gradients are off by their rounding alone."""
    p = Problem(dtype=dtype)
    objective = Objective(DivergenceSettings(kind))
    loss, scores = fused_loss(*p.models, p.streams, mask=p.mask, teacher_mask=p.mask, objective=objective)
    exact, leaves = p.exact(kind)
    for mine, theirs in zip(scores, exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(loss, p.leaves)
    assert all(g.dtype == dtype for g in ours)
    reference = composed(p, exact, surrogate="clipped", importance_clip=None, token_clip=None)
    assert_gradients(ours, torch.autograd.grad(reference, leaves), 8e-3 if dtype == torch.bfloat16 else 1e-3)


def test_masked_tokens_are_never_touched():
    p = Problem()
    clean = fused_loss(*p.models, p.streams, mask=p.mask)
    bad = ~p.mask[..., None]
    hidden = p.hidden.detach().masked_fill(bad, math.nan).requires_grad_()
    student = ModelStates(hidden, p.arguments[1])
    teacher = ModelStates(p.teacher_hidden.masked_fill(bad, math.inf), p.arguments[3])
    streams = Streams(*(stream.masked_fill(~p.mask, math.nan) for stream in p.streams))
    loss, scores = fused_loss(student, teacher, p.tokens, streams, mask=p.mask, teacher_mask=p.sd_weight != 0)
    assert torch.equal(loss, clean[0])
    assert all(torch.equal(a, b) for a, b in zip(scores, clean[1], strict=True))
    (grad,) = torch.autograd.grad(loss, hidden)
    assert torch.isfinite(grad).all()
    assert (grad[~p.mask] == 0).all()


def test_the_teacher_is_not_scored_where_nothing_is_distilled():
    """Its hidden states there may be anything, and its fields are 0."""
    p = Problem()
    without = p.sd_weight == 0
    teacher = ModelStates(p.teacher_hidden.masked_fill(without[..., None], math.nan), p.arguments[3])
    loss, scores = fused_loss(p.models[0], teacher, p.tokens, p.streams, mask=p.mask)
    assert torch.isfinite(loss)
    assert (scores.divergence[without] == 0).all()
    _, everywhere = fused_loss(*p.models, p.streams, mask=p.mask, teacher_mask=p.mask)
    assert (everywhere.divergence[p.mask] > 0).all()


def test_without_a_teacher():
    p = Problem()
    scores = token_scores(p.hidden, p.arguments[1], None, None, p.tokens, mask=p.mask)
    assert scores.teacher_logp is None
    assert scores.teacher_entropy is None
    assert scores.divergence is None
    exact, leaves = p.exact()
    torch.testing.assert_close(scores.student_logp.double(), exact.student_logp, atol=1e-5, rtol=1e-5)
    loss, _ = fused_loss(p.models[0], None, p.tokens, Streams(p.advantage, p.rl_weight, None), mask=p.mask)
    reference = -(exact.student_logp * p.advantage * p.rl_weight).sum()
    assert_gradients(torch.autograd.grad(loss, p.leaves), torch.autograd.grad(reference, leaves), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_vocabulary_changes_nothing(kind):
    """Twenty rows of bias -inf on both sides."""
    p, kept = Problem(softcap=None), 137
    forbidden = torch.zeros(157)
    forbidden[kept:] = -math.inf
    tokens = p.tokens.clamp(max=kept - 1)
    bias, teacher_bias = (p.bias + forbidden).detach().requires_grad_(), p.teacher_bias + forbidden
    padded = (
        ModelStates(p.hidden, Head(p.weight, bias)),
        ModelStates(p.teacher_hidden, Head(p.teacher_weight, teacher_bias)),
    )
    head, teacher_head = Head(p.weight[:kept], p.bias[:kept]), Head(p.teacher_weight[:kept], p.teacher_bias[:kept])
    cut = ModelStates(p.hidden, head), ModelStates(p.teacher_hidden, teacher_head)
    options = {"mask": p.mask, "objective": Objective(DivergenceSettings(kind))}
    loss, scores = fused_loss(*padded, tokens, p.streams, **options)
    expected, expected_scores = fused_loss(*cut, tokens, p.streams, **options)
    torch.testing.assert_close((loss, *scores), (expected, *expected_scores))
    ours = torch.autograd.grad(loss, (p.hidden, p.weight, bias))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (p.hidden, p.weight, p.bias)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forbids", ["student", "teacher"])
def test_a_token_only_one_model_forbids_stays_finite(kind, forbids):
    p = Problem(softcap=None, scale=1.0)
    (p.bias.data if forbids == "student" else p.teacher_bias)[3] = -math.inf
    tokens = torch.where(p.tokens == 3, 4, p.tokens)
    scores = token_scores(*p.arguments[:4], tokens, mask=p.mask, divergence=kind)
    grads = torch.autograd.grad((scores.student_logp + scores.divergence).sum(), p.leaves)
    assert all(torch.isfinite(x).all() for x in (*scores, *grads))
    exact, _ = p.exact(kind)
    torch.testing.assert_close(scores.divergence.double(), exact.divergence, atol=1e-4, rtol=1e-2)


def test_extreme_logits_stay_finite():
    p = Problem(bias=False, softcap=None, scale=300.0)
    for kind in KINDS:
        scores = token_scores(*p.arguments, mask=p.mask, divergence=kind)
        grads = torch.autograd.grad((scores.student_logp + scores.divergence).sum(), p.leaves)
        assert all(torch.isfinite(x).all() for x in (*scores, *grads))
        assert (scores.student_logp <= 0).all()
        assert (scores.student_entropy >= 0).all()


def test_no_valid_token_gives_zero_and_a_connected_graph():
    p = Problem()
    loss, scores = fused_loss(*p.models, p.distilled, mask=torch.zeros_like(p.mask))
    assert loss.item() == 0
    assert all((s == 0).all() for s in scores)
    assert all((g == 0).all() for g in torch.autograd.grad(loss, p.leaves))


def test_frozen_head_and_frozen_backbone():
    p = Problem(bias=False)
    both = torch.autograd.grad(fused_loss(*p.models, p.streams, mask=p.mask)[0], p.leaves)
    p.weight.requires_grad_(False)
    loss, _ = fused_loss(*p.models, p.streams, mask=p.mask)
    assert torch.equal(torch.autograd.grad(loss, p.hidden)[0], both[0])
    p.weight.requires_grad_(True), p.hidden.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(fused_loss(*p.models, p.streams, mask=p.mask)[0], p.weight)[0], both[1])


def test_the_teacher_never_gets_a_gradient():
    p = Problem()
    p.teacher_hidden.requires_grad_(), p.teacher_weight.requires_grad_()
    fused_loss(*p.models, p.distilled, mask=p.mask)[0].backward()
    token_scores(*p.arguments, mask=p.mask).divergence.sum().backward()
    assert p.teacher_hidden.grad is None
    assert p.teacher_weight.grad is None


def test_tied_embeddings_sum_both_uses():
    """The weight is embedding and head at once, and its own live teacher."""
    torch.manual_seed(0)
    weight, mix = torch.randn(40, 6, requires_grad=True), torch.randn(6, 6)
    tokens = torch.randint(0, 40, (2, 8))

    def hidden(w):
        return torch.tanh(w[tokens] @ mix)

    student, teacher = ModelStates(hidden(weight), weight), ModelStates(hidden(weight) + 0.5, weight)
    ours, _ = fused_loss(student, teacher, tokens, Streams(None, None, torch.ones(2, 8)))
    exact = plain.divergence(hidden(weight) @ weight.t(), (hidden(weight) + 0.5) @ weight.t()).sum()
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-5)
    assert_gradients(torch.autograd.grad(ours, [weight]), torch.autograd.grad(exact, [weight]), 1e-4)


def test_gradient_accumulation_and_micro_batches_change_nothing():
    p = Problem(b=4)
    fused_loss(*p.models, p.streams, mask=p.mask)[0].backward()
    whole = [x.grad.clone() for x in p.leaves]
    for x in p.leaves:
        x.grad = None
    for part in (slice(0, 1), slice(1, 4)):
        student, teacher = (model._replace(hidden=model.hidden[part]) for model in p.models[:2])
        streams = Streams(*(stream[part] for stream in p.streams))
        loss, _ = fused_loss(student, teacher, p.tokens[part], streams, mask=p.mask[part])
        (loss / 2).backward()
    for x, g in zip(p.leaves, whole, strict=True):
        torch.testing.assert_close(2 * x.grad, g, atol=1e-6, rtol=1e-5)


def test_backward_twice_is_the_same_gradient():
    p = Problem()
    loss, _ = fused_loss(*p.models, p.distilled, mask=p.mask)
    first = torch.autograd.grad(3 * loss, p.leaves, retain_graph=True)
    second = torch.autograd.grad(3 * loss, p.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_under_gradient_checkpointing():
    p = Problem()
    layer = torch.nn.Linear(7, 7)

    def loss(hidden):
        student = ModelStates(torch.tanh(layer(hidden)), p.arguments[1])
        return fused_loss(student, *p.models[1:], p.distilled, mask=p.mask)[0]

    plainly = torch.autograd.grad(loss(p.hidden), [p.hidden, p.weight, layer.weight])
    again = torch.autograd.grad(checkpoint(loss, p.hidden, use_reentrant=False), [p.hidden, p.weight, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(plainly, again, strict=True))


def test_under_autocast_it_multiplies_what_the_models_head_would():
    """Operands rounded to bfloat16, sums in float32: at least as exact as autocast's own logits."""
    p = Problem(bias=False, softcap=None, scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scores = fused_loss(*p.models, p.distilled, mask=p.mask)
    ours = torch.autograd.grad(loss, p.leaves)
    assert scores.divergence.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in ours)
    rounded = Problem(bias=False, softcap=None, scale=1.0)
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        getattr(rounded, name).data = getattr(p, name).detach().bfloat16().float()
    exact, leaves = rounded.exact()
    torch.testing.assert_close(scores.divergence.double(), exact.divergence * (p.sd_weight != 0), atol=1e-5, rtol=1e-5)
    assert_gradients(ours, torch.autograd.grad((exact.divergence * p.sd_weight).sum(), leaves), 1e-4)


def test_no_grad_computes_the_loss_alone():
    p = Problem()
    with torch.no_grad():
        quiet, _ = fused_loss(*p.models, p.streams, mask=p.mask)
    loud, _ = fused_loss(*p.models, p.streams, mask=p.mask)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, loud.detach())


def test_plain_tensors_with_biases_do_as_well_as_heads():
    p = Problem(softcap=None, scale=1.0)
    by_head = token_scores(*p.arguments, mask=p.mask)
    by_tensor = token_scores(
        p.hidden,
        p.weight,
        p.teacher_hidden,
        p.teacher_weight,
        p.tokens,
        mask=p.mask,
        student_bias=p.bias,
        teacher_bias=p.teacher_bias,
    )
    assert all(torch.equal(a, b) for a, b in zip(by_head, by_tensor, strict=True))


@pytest.mark.parametrize(
    ("changed", "argument"),
    [
        ({"student_hidden": torch.zeros(2, 3, 5)}, "student_hidden"),
        ({"teacher_hidden": torch.zeros(2, 4, 4)}, "teacher_hidden"),
        ({"student_head": torch.zeros(9)}, "student_head"),
        ({"teacher_head": torch.zeros(8, 4)}, "teacher_head"),
        ({"teacher_head": None}, "teacher_head"),
        ({"student_bias": torch.zeros(8)}, "student_bias"),
        ({"mask": torch.ones(2, 4)}, "mask"),
        ({"tokens": torch.full((2, 3), 9)}, "tokens"),
        ({"divergence": "kl"}, "divergence"),
        ({"support": "top"}, "support"),
        ({"k": 0}, "k:"),
        ({"alpha": -0.1}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"entry_clip": 0.1}, "entry_clip: a term of forward_ce"),
        ({"entry_clip": 0.0, "divergence": "js"}, "entry_clip: 0.0 must be positive"),
    ],
)
def test_errors_name_the_argument(changed, argument):
    arguments = {
        "student_hidden": torch.zeros(2, 3, 4),
        "student_head": torch.zeros(9, 4),
        "teacher_hidden": torch.zeros(2, 3, 4),
        "teacher_head": torch.zeros(9, 4),
        "tokens": torch.zeros(2, 3, dtype=torch.long),
    } | changed
    with pytest.raises(ValueError, match=argument):
        token_scores(**arguments)


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("streams", "changed", "argument"),
    [
        (Streams(None, ONES, None), {}, "advantage"),
        (Streams(torch.ones(2, 4), ONES, None), {}, "advantage"),
        (Streams(ONES, torch.ones(2, 4), None), {}, "rl_weight"),
        (Streams(None, None, torch.ones(2, 4)), {}, "sd_weight"),
        (Streams(None, None, ONES), {"teacher": None}, "teacher: sd_weight"),
        (Streams(None, None, ONES), {"old_logp": torch.ones(3)}, "old_logp"),
    ],
)
@pytest.mark.parametrize("decided", [True, False])
def test_errors_of_the_loss_name_the_argument(streams, changed, argument, decided):
    arguments = {
        "student": ModelStates(torch.zeros(2, 3, 4), torch.zeros(9, 4)),
        "teacher": ModelStates(torch.zeros(2, 3, 4), torch.zeros(9, 4)),
        "tokens": torch.zeros(2, 3, dtype=torch.long),
        "streams": streams if decided else lambda scores: streams,
    } | changed
    with pytest.raises(ValueError, match=argument):
        fused_loss(**arguments)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Objective(surrogate="ppo"), "surrogate"),
        (lambda: DivergenceSettings("kl"), "divergence kind"),
        (lambda: DivergenceSettings(support="top"), "support"),
        (lambda: DivergenceSettings(top_k=0), "top_k"),
        (lambda: DivergenceSettings(alpha=1.5), "alpha"),
        (lambda: DivergenceSettings("forward_ce", entry_clip=0.1), "use forward_kl"),
        (lambda: DivergenceSettings("forward_kl", entry_clip=-1.0), "entry_clip: -1.0 must be positive"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()
