"""Fused scores and loss against a float64 computation that holds all logits, and against each other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from errata.ops import divergence as plain
from errata.ops.fused import engine as tiles
from errata.ops.fused import threads as lanes
from errata.ops.fused import workspace
from errata.ops.policy_gradient import clipped_surrogate, importance_surrogate
from errata.ops.scores import Head, TokenScores, fused_loss, token_scores

KINDS = plain.KINDS


@pytest.fixture(params=["one tile", "many tiles", "lodged"])
def tiling(request, monkeypatch):
    """The small problems of these tests fit one tile; shrink the tiles so that rows and vocabulary are cut too, and three
    lanes share the blocks. In the smallest tiles there is more room within dhead, and the first is lodged there."""
    if request.param != "one tile":
        monkeypatch.setattr(workspace, "lanes_on", lambda device: 3)
        monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 24_000 if request.param == "many tiles" else 6_000)
        monkeypatch.setitem(workspace.BLOCK_ELEMENTS, "cpu", 700)


class Problem:
    """Random hidden states, heads with everything on, ragged mask; and the float64 answer that holds (B, T, V)."""

    def __init__(
        self, seed=0, b=3, t=13, h=7, h_teacher=5, v=157, dtype=torch.float32, bias=True, softcap=4.0, scale=0.9
    ):
        torch.manual_seed(seed)
        self.hidden = torch.randn(b, t, h).to(dtype).requires_grad_()
        self.weight = (torch.randn(v, h)).to(dtype).requires_grad_()
        self.bias = torch.randn(v).to(dtype).requires_grad_() if bias else None
        self.teacher_hidden, self.teacher_weight = (
            torch.randn(b, t, h_teacher).to(dtype),
            torch.randn(v, h_teacher).to(dtype),
        )
        self.teacher_bias = torch.randn(v).to(dtype) if bias else None
        self.scale, self.softcap = scale, softcap
        self.tokens, self.mask = torch.randint(0, v, (b, t)), torch.rand(b, t) > 0.4
        self.tokens = self.tokens.masked_fill(~self.mask, -100)
        self.advantage, self.old_logp = torch.randn(b, t), None
        self.rl_weight = torch.rand(b, t) * (torch.rand(b, t) > 0.3)
        self.sd_weight = torch.rand(b, t) * (torch.rand(b, t) > 0.3)

    @property
    def leaves(self):
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    @property
    def arguments(self):
        return (
            self.hidden,
            Head(self.weight, self.bias, self.scale, self.softcap),
            self.teacher_hidden,
            Head(self.teacher_weight, self.teacher_bias, self.scale, self.softcap),
            self.tokens,
        )

    def exact(self, kind="forward_ce", alpha=0.5, temperature=1.0, support="full", k=100, dtype=torch.float64):
        """(scores, leaves): the scores of all logits at once, and the copies they are differentiable by."""
        leaves = [x.detach().to(dtype).requires_grad_() for x in self.leaves]

        def logits(hidden, weight, bias):
            z = hidden @ weight.t()
            z = (z if bias is None else z + bias) * self.scale
            z = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
            return z / temperature

        bias = leaves[2] if self.bias is not None else None
        z = logits(leaves[0], leaves[1], bias)
        teacher = (self.teacher_hidden, self.teacher_weight, self.teacher_bias)
        u = logits(*(None if x is None else x.to(dtype) for x in teacher))
        tokens = self.tokens.clamp(min=0)[..., None]

        def of(logits):
            logp = logits.log_softmax(-1)
            return logp.gather(-1, tokens)[..., 0] * self.mask, -(logp.exp() * logp).sum(-1) * self.mask

        if support == "full":
            value = plain.divergence(z, u, kind, alpha=alpha)
        else:
            value = plain.topk_divergence(z, u, kind, alpha=alpha, support=support, k=k)
        (logp, entropy), (teacher_logp, teacher_entropy) = of(z), of(u)
        return TokenScores(logp, teacher_logp, entropy, teacher_entropy, value * self.mask), leaves


def assert_gradients(ours, exact, relative):
    for mine, theirs in zip(ours, exact, strict=True):
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < relative, f"relative error {error:.1e}"


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
        theirs = torch.autograd.grad((exact.student_logp + exact.divergence).sum(), leaves)
        assert_gradients(ours, theirs, 1e-4)


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
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "old_logp": p.old_logp}
    loss, scores = fused_loss(*p.arguments, **weights, mask=p.mask, divergence=kind, alpha=0.3, **settings)
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
    taught = p.mask & (p.sd_weight != 0)
    for name in ("teacher_logp", "teacher_entropy", "divergence"):
        torch.testing.assert_close(getattr(scores, name).double(), getattr(exact, name) * taught, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("support", ["full", "student_topk", "teacher_topk"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, support, tiling):
    p = Problem(b=2, t=5, h=3, h_teacher=2, v=11, dtype=torch.float64)
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight}
    p.old_logp = token_scores(*p.arguments, mask=p.mask).student_logp.detach() + 0.1
    options = {"divergence": kind, "alpha": 0.3, "mask": p.mask, "support": support, "k": 4}

    def scores(hidden, weight, bias):
        s = token_scores(hidden, Head(weight, bias, 0.9, 4.0), *p.arguments[2:], **options)
        return s.student_logp, s.divergence

    def loss(hidden, weight, bias):
        head = Head(weight, bias, 0.9, 4.0)
        return fused_loss(hidden, head, *p.arguments[2:], **weights, **options, old_logp=p.old_logp, clip_high=9.0)[0]

    assert torch.autograd.gradcheck(scores, p.leaves)
    assert torch.autograd.gradcheck(loss, p.leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_accumulates_in_float32(dtype, kind):
    """From the same rounded inputs the values are as exact as ever; the gradients are off by their rounding alone."""
    p = Problem(dtype=dtype)
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    loss, scores = fused_loss(*p.arguments, **weights, divergence=kind, teacher_mask=p.mask)
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
    clean = fused_loss(*p.arguments, rl_weight=p.rl_weight, sd_weight=p.sd_weight, advantage=p.advantage, mask=p.mask)
    bad = ~p.mask[..., None]
    hidden = p.hidden.detach().masked_fill(bad, math.nan).requires_grad_()
    arguments = (hidden, p.arguments[1], p.teacher_hidden.masked_fill(bad, math.inf), *p.arguments[3:])
    weights = {n: getattr(p, n).masked_fill(~p.mask, math.nan) for n in ("advantage", "rl_weight", "sd_weight")}
    loss, scores = fused_loss(*arguments, **weights, mask=p.mask, teacher_mask=p.sd_weight != 0)
    assert torch.equal(loss, clean[0])
    assert all(torch.equal(a, b) for a, b in zip(scores, clean[1], strict=True))
    (grad,) = torch.autograd.grad(loss, hidden)
    assert torch.isfinite(grad).all()
    assert (grad[~p.mask] == 0).all()


def test_the_teacher_is_not_asked_where_nothing_is_distilled():
    """Its hidden states there may be anything, and its fields are 0."""
    p = Problem()
    untaught = p.sd_weight == 0
    teacher = p.teacher_hidden.masked_fill(untaught[..., None], math.nan)
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    loss, scores = fused_loss(*p.arguments[:2], teacher, *p.arguments[3:], **weights)
    assert torch.isfinite(loss)
    assert (scores.divergence[untaught] == 0).all()
    _, everywhere = fused_loss(*p.arguments, **weights, teacher_mask=p.mask)
    assert (everywhere.divergence[p.mask] > 0).all()


def test_without_a_teacher():
    p = Problem()
    scores = token_scores(p.hidden, p.arguments[1], None, None, p.tokens, mask=p.mask)
    assert scores.teacher_logp is None
    assert scores.teacher_entropy is None
    assert scores.divergence is None
    exact, leaves = p.exact()
    torch.testing.assert_close(scores.student_logp.double(), exact.student_logp, atol=1e-5, rtol=1e-5)
    loss, _ = fused_loss(
        p.hidden, p.arguments[1], None, None, p.tokens, advantage=p.advantage, rl_weight=p.rl_weight, mask=p.mask
    )
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
    padded = (p.hidden, Head(p.weight, bias), p.teacher_hidden, Head(p.teacher_weight, teacher_bias), tokens)
    head, teacher_head = Head(p.weight[:kept], p.bias[:kept]), Head(p.teacher_weight[:kept], p.teacher_bias[:kept])
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    loss, scores = fused_loss(*padded, **weights, divergence=kind)
    expected, expected_scores = fused_loss(
        p.hidden, head, p.teacher_hidden, teacher_head, tokens, **weights, divergence=kind
    )
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
    loss, scores = fused_loss(*p.arguments, sd_weight=p.sd_weight, mask=torch.zeros_like(p.mask))
    assert loss.item() == 0
    assert all((s == 0).all() for s in scores)
    assert all((g == 0).all() for g in torch.autograd.grad(loss, p.leaves))


def test_frozen_head_and_frozen_backbone():
    p = Problem(bias=False)
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    both = torch.autograd.grad(fused_loss(*p.arguments, **weights)[0], p.leaves)
    p.weight.requires_grad_(False)
    loss, _ = fused_loss(*p.arguments, **weights)
    assert torch.equal(torch.autograd.grad(loss, p.hidden)[0], both[0])
    p.weight.requires_grad_(True), p.hidden.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(fused_loss(*p.arguments, **weights)[0], p.weight)[0], both[1])


def test_the_teacher_never_gets_a_gradient():
    p = Problem()
    p.teacher_hidden.requires_grad_(), p.teacher_weight.requires_grad_()
    fused_loss(*p.arguments, sd_weight=p.sd_weight, mask=p.mask)[0].backward()
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

    ours, _ = fused_loss(hidden(weight), weight, hidden(weight) + 0.5, weight, tokens, sd_weight=torch.ones(2, 8))
    exact = plain.divergence(hidden(weight) @ weight.t(), (hidden(weight) + 0.5) @ weight.t()).sum()
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-5)
    assert_gradients(torch.autograd.grad(ours, [weight]), torch.autograd.grad(exact, [weight]), 1e-4)


def test_gradient_accumulation_and_micro_batches_change_nothing():
    p = Problem(b=4)
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    fused_loss(*p.arguments, **weights)[0].backward()
    whole = [x.grad.clone() for x in p.leaves]
    for x in p.leaves:
        x.grad = None
    head, teacher_head = p.arguments[1], p.arguments[3]
    for part in (slice(0, 1), slice(1, 4)):
        w = {name: value[part] for name, value in weights.items()}
        loss, _ = fused_loss(p.hidden[part], head, p.teacher_hidden[part], teacher_head, p.tokens[part], **w)
        (loss / 2).backward()
    for x, g in zip(p.leaves, whole, strict=True):
        torch.testing.assert_close(2 * x.grad, g, atol=1e-6, rtol=1e-5)


def test_backward_twice_is_the_same_gradient():
    p = Problem()
    loss, _ = fused_loss(*p.arguments, sd_weight=p.sd_weight, mask=p.mask)
    first = torch.autograd.grad(3 * loss, p.leaves, retain_graph=True)
    second = torch.autograd.grad(3 * loss, p.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_under_gradient_checkpointing():
    p = Problem()
    layer = torch.nn.Linear(7, 7)

    def loss(hidden):
        return fused_loss(torch.tanh(layer(hidden)), *p.arguments[1:], sd_weight=p.sd_weight, mask=p.mask)[0]

    plainly = torch.autograd.grad(loss(p.hidden), [p.hidden, p.weight, layer.weight])
    again = torch.autograd.grad(checkpoint(loss, p.hidden, use_reentrant=False), [p.hidden, p.weight, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(plainly, again, strict=True))


def test_under_autocast_it_multiplies_what_the_models_head_would():
    """Operands rounded to bfloat16, sums in float32: at least as exact as autocast's own logits."""
    p = Problem(bias=False, softcap=None, scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scores = fused_loss(*p.arguments, sd_weight=p.sd_weight, mask=p.mask)
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
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "mask": p.mask}
    with torch.no_grad():
        quiet, _ = fused_loss(*p.arguments, **weights)
    loud, _ = fused_loss(*p.arguments, **weights)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("kind", "support"), [*((kind, "full") for kind in KINDS), ("js", "student_topk")])
def test_a_tile_waits_for_no_value_of_its_device(dtype, kind, support, monkeypatch):
    """On tensors without values, where any read of one raises: a GPU is never waited for within the engine. Half-precision
    operands take the products with float32 sums that a GPU offers, as far as shapes and types go."""
    half = (torch.bfloat16, torch.float16)
    monkeypatch.setattr(tiles, "product_dtype", lambda dtype, device, acc: dtype if dtype in half else acc)
    hidden, weight, bias = (
        torch.empty(*shape, dtype=dtype, device="meta") for shape in ((300, 256), (1000, 256), (1000,))
    )
    side = tiles.Side(hidden, weight, bias, 1.0, 5.0, 0.7, dtype)
    sums = tiles.Gradients(*(torch.empty_like(x, dtype=torch.float32) for x in (hidden, weight, bias)))
    tokens = torch.empty(300, dtype=torch.long, device="meta")

    def slopes(rows, scores, marked):
        return torch.ones_like(scores.student_logp[rows]), torch.ones_like(scores.divergence[rows]) if marked else None

    with torch.no_grad():
        teachers = ((200, side), (100, None))
        scores = tiles.sweep(side, teachers, tokens, tiles.Measure(kind, 0.5, support, 9, True), slopes, sums)
    assert all(x.shape == (300,) and x.dtype == torch.float32 for x in scores)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_all_logits_never_exist_at_once(kind, monkeypatch):
    """Forward and backward of both forms, with room for 16 columns of the 160."""
    v, t = 4000, 160
    monkeypatch.setattr(lanes, "MOST", 1)  # what other threads make is not seen here
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 16 * v * 4)
    monkeypatch.setitem(workspace.BLOCK_ELEMENTS, "cpu", 16 * 256)
    p = Problem(b=1, t=t, v=v, softcap=None)
    p.mask[:] = True
    with LargestTensor() as seen:
        fused_loss(*p.arguments[:4], p.tokens.clamp(min=0), sd_weight=p.sd_weight + 1, divergence=kind)[0].backward()
        scores = token_scores(*p.arguments[:4], p.tokens.clamp(min=0), divergence=kind)
        (scores.divergence + scores.student_logp).sum().backward()
    assert seen.elements <= 16 * v
    assert seen.elements < t * v / 9


@given(n=st.integers(1, 5000), first=st.integers(1, 600), most=st.integers(1, 600))
def test_tiles_are_few_and_alike(n, first, most):
    heights = workspace.plan(n, first, most)
    assert sum(heights) == n
    assert min(heights) > 0
    assert heights[0] <= first
    assert max(heights[1:], default=0) <= most
    if n > first:
        first, most = first // 16 * 16 or first, most // 16 * 16 or most
        assert len(heights) == 1 + -(-(n - first) // most)  # as few as can be


@pytest.mark.parametrize(
    ("n", "heights"),
    [
        (512, [512]),  # whole where that can be
        (1024, [544, 240, 240]),  # 512 and two of 256 would be as even, and slower
        (2048, [512, 272, 240, 272, 240, 272, 240]),
        (600, [400, 200]),
    ],
)
def test_rows_are_in_step_with_cache_lines_but_not_with_sets(n, heights):
    assert workspace.plan(n, 552, 276) == heights


def test_no_tile_is_added_to_keep_rows_out_of_step():
    assert workspace.plan(2048, 538, 269) == [528, 256, 256, 256, 256, 256, 240]  # 272 would not fit


@pytest.mark.parametrize(
    ("taught", "tokens", "columns"), [(False, 60, 0), (True, 60, 60), (False, 90, 26), (True, 90, 48)]
)
def test_the_first_tile_lives_in_dhead(taught, tokens, columns, monkeypatch):
    """V = 100, H = 64, room for 60 columns of logits beside dhead: how many are taken, and what becomes of dhead."""
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 60 * 100 * 4)
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 64), torch.randn(100, 64)
    side = tiles.Side(hidden, weight, None, 1.0, None, 1.0, torch.float32)
    dhead = torch.full_like(weight, torch.nan)
    made = []
    monkeypatch.setattr(tiles.Tile, "score", lambda self, *a, s=tiles.Tile.score: made.append(self) or s(self, *a))
    ids = torch.randint(0, 100, (tokens,))

    def slopes(rows, scores, marked):
        return torch.ones_like(scores.student_logp[rows]), torch.zeros_like(scores.divergence[rows]) if marked else None

    tiles.sweep(
        side,
        ((tokens, side if taught else None),),
        ids,
        tiles.Measure("forward_ce", 0.5, "full", 1, False),
        slopes,
        tiles.Gradients(None, dhead, None),
    )
    assert made[0].space._kept.numel() == columns * 100
    indicator = torch.nn.functional.one_hot(ids, 100).float()
    expected = (indicator - (hidden @ weight.t()).softmax(-1)).t() @ hidden
    torch.testing.assert_close(dhead, expected, rtol=1e-4, atol=1e-4)


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
        ({"rl_weight": torch.ones(2, 3)}, "advantage"),
        ({"sd_weight": torch.ones(2, 4)}, "sd_weight"),
        ({"surrogate": "ppo"}, "surrogate"),
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
    loss_only = {"rl_weight", "sd_weight", "surrogate"} & changed.keys()
    with pytest.raises(ValueError, match=argument):
        (fused_loss if loss_only else token_scores)(**arguments)
