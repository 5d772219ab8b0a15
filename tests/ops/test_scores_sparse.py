"""Teachers known by a few tokens, against the whole computation."""

import math

import pytest
import torch
from tests.ops.problems import Problem, assert_gradients

from errata.ops import divergence as plain
from errata.ops.scores import DivergenceSettings, Head, ModelStates, Objective, SparseTeacher, fused_loss, token_scores


def top_k(p, k, temperature=1.0):
    """The teacher's likeliest k tokens as a server would give them, without padding."""
    with torch.no_grad():
        z = torch.nn.functional.linear(p.teacher_hidden, p.teacher_weight, p.teacher_bias) * p.scale
        z = p.softcap * torch.tanh(z / p.softcap)
        found = (z / temperature).log_softmax(-1).topk(k, dim=-1)
    return found.indices, found.values


@pytest.mark.parametrize("kind", plain.KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_servers_top_k_is_the_teachers_top_k_with_a_tail(kind, temperature, tiling):
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


def test_samples_score_the_mean_negative_log_prob(tiling):
    p = Problem()
    n = 5
    drawn = torch.randint(0, 157, (*p.mask.shape, n))
    known_at = p.mask & (torch.rand(p.mask.shape) > 0.5)
    sparse = SparseTeacher(drawn, torch.full(drawn.shape, -math.log(n)), known_at, tail=False)
    ours = token_scores(*p.arguments[:2], None, None, p.tokens, sparse=sparse, mask=p.mask)
    leaves = [x.detach().double().requires_grad_() for x in p.leaves]
    z = torch.nn.functional.linear(leaves[0], leaves[1], leaves[2]) * p.scale
    exact = -(p.softcap * torch.tanh(z / p.softcap)).log_softmax(-1).gather(-1, drawn).mean(-1) * known_at
    torch.testing.assert_close(ours.divergence.double(), exact, atol=1e-5, rtol=1e-5)
    weight = torch.randn(p.mask.shape)
    assert_gradients(
        torch.autograd.grad((weight * ours.divergence).sum(), p.leaves),
        torch.autograd.grad((weight * exact).sum(), leaves),
        1e-4,
    )
    assert (ours.teacher_entropy == 0).all()
    assert (ours.divergence[~known_at] == 0).all()


@pytest.mark.parametrize("tail", [True, False])
def test_gradcheck(tail, tiling):
    p = Problem(b=2, t=5, h=3, h_teacher=2, v=11, dtype=torch.float64)
    tokens, logp = top_k(p, 3)
    if not tail:
        logp = torch.full_like(logp, -math.log(3))
    sparse = SparseTeacher(tokens, logp, p.mask & (torch.rand(p.mask.shape) > 0.3), tail)
    old = token_scores(*p.arguments, mask=p.mask).student_logp.detach() + 0.1
    options = {"mask": p.mask, "sparse": sparse, "old_logp": old, "objective": Objective(clip_high=9.0)}

    def loss(hidden, weight, bias):
        student = ModelStates(hidden, Head(weight, bias, 0.9, 4.0))
        return fused_loss(student, None, p.tokens, p.streams, **options)[0]

    assert torch.autograd.gradcheck(loss, p.leaves)


def test_both_kinds_of_teacher_in_one_batch(tiling):
    p = Problem()
    tokens, logp = top_k(p, 9)
    known_at = p.mask.clone()
    known_at[1:] = False
    sparse = SparseTeacher(tokens, logp, known_at, tail=True)
    both = token_scores(*p.arguments, mask=p.mask, sparse=sparse)
    dense = token_scores(*p.arguments, mask=p.mask)
    top = token_scores(*p.arguments, mask=p.mask, support="teacher_topk", k=9, tail=True)
    torch.testing.assert_close(both.divergence[1:], dense.divergence[1:])
    torch.testing.assert_close(both.divergence[0], top.divergence[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"divergence": "reverse_kl"}, "divergence: reverse_kl needs"),
        ({"tokens_shape": (3, 12, 2)}, "sparse: tokens"),
        ({"outside": True}, "sparse: its tokens"),
    ],
)
def test_errors_name_the_argument(changes, argument):
    p = Problem()
    tokens = torch.zeros(changes.get("tokens_shape", (*p.mask.shape, 2)), dtype=torch.long)
    tokens = tokens + 157 if changes.get("outside") else tokens
    sparse = SparseTeacher(tokens, torch.zeros(*p.mask.shape, 2) - math.log(2), p.mask, tail=False)
    objective = Objective(DivergenceSettings(changes.get("divergence", "forward_ce")))
    with pytest.raises(ValueError, match=argument):
        fused_loss(p.models[0], None, p.tokens, p.streams, mask=p.mask, sparse=sparse, objective=objective)
