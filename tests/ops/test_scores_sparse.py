"""Teachers known by a few tokens, and losses decided from the responses' ends, against the whole computation."""

import math

import pytest
import torch
from tests.ops.test_scores import Problem, assert_gradients, tiling  # noqa: F401

from errata.ops import divergence as plain
from errata.ops.credit import center, future_cost
from errata.ops.fused import workspace
from errata.ops.scores import Head, SparseTeacher, fused_loss, token_scores


def top_k(p, k, temperature=1.0):
    """The teacher's likeliest k tokens as a server would give them, in the order and with the padding of no one."""
    with torch.no_grad():
        z = torch.nn.functional.linear(p.teacher_hidden, p.teacher_weight, p.teacher_bias) * p.scale
        z = p.softcap * torch.tanh(z / p.softcap)
        found = (z / temperature).log_softmax(-1).topk(k, dim=-1)
    return found.indices, found.values


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_servers_top_k_is_the_teachers_top_k_with_a_tail(kind, temperature, tiling):  # noqa: F811
    p = Problem()
    tokens, logp = top_k(p, 9, temperature)
    padded = torch.nn.functional.pad(logp, (0, 2), value=-torch.inf)
    sparse = SparseTeacher(torch.nn.functional.pad(tokens, (0, 2), value=-1), padded, p.mask, tail=True)
    options = {"divergence": kind, "alpha": 0.3, "mask": p.mask, "temperature": temperature}
    ours = token_scores(*p.arguments[:2], None, None, p.tokens, sparse=sparse, **options)
    theirs = token_scores(*p.arguments, support="teacher_topk", k=9, tail=True, **options)
    torch.testing.assert_close(ours.divergence, theirs.divergence, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.student_logp, theirs.student_logp)
    weight = torch.randn(p.mask.shape)
    assert_gradients(
        torch.autograd.grad((weight * ours.divergence).sum(), p.leaves),
        torch.autograd.grad((weight * theirs.divergence).sum(), p.leaves),
        1e-5,
    )
    # What is known of the teacher: its entropy over the buckets, and the sampled token's probability or the rest's.
    q = logp.exp()
    rest = 1 - q.sum(-1)
    entropy = -(q * logp).sum(-1) - rest * rest.log()
    torch.testing.assert_close(ours.teacher_entropy, entropy * p.mask, atol=1e-5, rtol=1e-5)
    hit = tokens == p.tokens[..., None]
    known = torch.where(hit.any(-1), torch.where(hit, logp, -1e9).amax(-1), rest.log())
    torch.testing.assert_close(ours.teacher_logp, known * p.mask, atol=1e-5, rtol=1e-5)


def test_samples_score_the_mean_of_the_students_surprise(tiling):  # noqa: F811
    p = Problem()
    n = 5
    drawn = torch.randint(0, 157, (*p.mask.shape, n))
    asked = p.mask & (torch.rand(p.mask.shape) > 0.5)
    sparse = SparseTeacher(drawn, torch.full(drawn.shape, -math.log(n)), asked, tail=False)
    ours = token_scores(*p.arguments[:2], None, None, p.tokens, sparse=sparse, mask=p.mask)
    leaves = [x.detach().double().requires_grad_() for x in p.leaves]
    z = torch.nn.functional.linear(leaves[0], leaves[1], leaves[2]) * p.scale
    exact = -(p.softcap * torch.tanh(z / p.softcap)).log_softmax(-1).gather(-1, drawn).mean(-1) * asked
    torch.testing.assert_close(ours.divergence.double(), exact, atol=1e-5, rtol=1e-5)
    weight = torch.randn(p.mask.shape)
    assert_gradients(
        torch.autograd.grad((weight * ours.divergence).sum(), p.leaves),
        torch.autograd.grad((weight * exact).sum(), leaves),
        1e-4,
    )
    assert (ours.teacher_entropy == 0).all()
    assert (ours.divergence[~asked] == 0).all()


@pytest.mark.parametrize("tail", [True, False])
def test_gradcheck(tail, tiling):  # noqa: F811
    p = Problem(b=2, t=5, h=3, h_teacher=2, v=11, dtype=torch.float64)
    tokens, logp = top_k(p, 3)
    if not tail:
        logp = torch.full_like(logp, -math.log(3))
    sparse = SparseTeacher(tokens, logp, p.mask & (torch.rand(p.mask.shape) > 0.3), tail)
    old = token_scores(*p.arguments, mask=p.mask).student_logp.detach() + 0.1
    weights = {"advantage": p.advantage, "rl_weight": p.rl_weight, "sd_weight": p.sd_weight, "old_logp": old}

    def loss(hidden, weight, bias):
        head = Head(weight, bias, 0.9, 4.0)
        return fused_loss(hidden, head, None, None, p.tokens, **weights, mask=p.mask, sparse=sparse, clip_high=9.0)[0]

    assert torch.autograd.gradcheck(loss, p.leaves)


def test_both_kinds_of_teacher_in_one_batch(tiling):  # noqa: F811
    p = Problem()
    tokens, logp = top_k(p, 9)
    named = p.mask.clone()
    named[1:] = False
    sparse = SparseTeacher(tokens, logp, named, tail=True)
    both = token_scores(*p.arguments, mask=p.mask, sparse=sparse)
    dense = token_scores(*p.arguments, mask=p.mask)
    top = token_scores(*p.arguments, mask=p.mask, support="teacher_topk", k=9, tail=True)
    torch.testing.assert_close(both.divergence[1:], dense.divergence[1:])
    torch.testing.assert_close(both.divergence[0], top.divergence[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("baseline", ["none", "position", "leave_one_out"])
@pytest.mark.parametrize("by", ["hidden states", "samples at some states"])
def test_deciding_from_the_end_equals_deciding_from_all_scores(baseline, by, tiling):  # noqa: F811
    """The future is known where a walk begins: one pass gives the loss and the gradient that two passes give."""
    p = Problem(b=6, t=13)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    asked = p.mask & (torch.rand(p.mask.shape) > 0.4)
    if by == "hidden states":
        teacher, asked = {"teacher_hidden": p.teacher_hidden, "teacher_head": p.arguments[3]}, p.mask
    else:
        drawn = torch.randint(0, 157, (*p.mask.shape, 2))
        sparse = SparseTeacher(drawn, torch.full(drawn.shape, -math.log(2)), asked, tail=False)
        teacher = {"teacher_hidden": None, "teacher_head": None, "sparse": sparse}
    calls = []

    def decide(scores):
        calls.append(scores)
        cost = (scores.divergence - scores.teacher_entropy) * asked
        credit = center(future_cost(cost, p.mask), p.mask, group, baseline=baseline)
        return -credit, 0.3 * p.mask.float(), asked * 0.7

    one, scores = fused_loss(*p.arguments[:2], tokens=p.tokens, mask=p.mask, decide=decide, **teacher)
    walked = torch.autograd.grad(one, p.leaves)
    whole = token_scores(*p.arguments[:2], tokens=p.tokens, mask=p.mask, **teacher)
    advantage, rl_weight, sd_weight = decide(whole)
    weights = {"advantage": advantage.detach(), "rl_weight": rl_weight, "sd_weight": sd_weight}
    two, _ = fused_loss(*p.arguments[:2], tokens=p.tokens, mask=p.mask, **weights, **teacher)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert_gradients(walked, torch.autograd.grad(two, p.leaves), 1e-5)
    torch.testing.assert_close(scores.divergence, whole.divergence, atol=1e-6, rtol=1e-6)
    if workspace.TILE_BYTES["cpu"] < 1 << 20:
        assert (calls[0].divergence == 0).sum() > (calls[-1].divergence == 0).sum()  # it really was asked on the way


def test_a_later_backward_uses_what_was_decided():
    p = Problem()
    options = {"tokens": p.tokens, "mask": p.mask, "teacher_hidden": p.teacher_hidden, "teacher_head": p.arguments[3]}

    def decide(scores):
        return -future_cost(scores.divergence, p.mask), p.mask.float(), p.mask.float()

    loss, _ = fused_loss(*p.arguments[:2], decide=decide, **options)
    first = torch.autograd.grad(loss, p.leaves, retain_graph=True)
    assert_gradients(torch.autograd.grad(loss, p.leaves), first, 1e-6)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"divergence": "reverse_kl"}, "divergence: reverse_kl needs"),
        ({"tokens_shape": (3, 12, 2)}, "sparse: tokens"),
        ({"outside": True}, "sparse: its tokens"),
        ({"decide": True, "mask": None}, "mask: needed with decide"),
        ({"decide": True, "dense": True}, "sparse: decide cannot"),
    ],
)
def test_errors_name_the_argument(changes, argument):
    p = Problem()
    tokens = torch.zeros(changes.get("tokens_shape", (*p.mask.shape, 2)), dtype=torch.long)
    tokens = tokens + 157 if changes.get("outside") else tokens
    sparse = SparseTeacher(tokens, torch.zeros(*p.mask.shape, 2) - math.log(2), p.mask, tail=False)
    teacher = p.arguments[2:4] if changes.get("dense") else (None, None)
    options = {"mask": changes.get("mask", p.mask), "divergence": changes.get("divergence", "forward_ce")}
    if changes.get("decide"):
        options["decide"] = lambda scores: (p.advantage, p.rl_weight, p.sd_weight)
    with pytest.raises(ValueError, match=argument):
        fused_loss(*p.arguments[:2], *teacher, p.tokens, sparse=sparse, **options)
