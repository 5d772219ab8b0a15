"""Streams decided from the scores: once, from complete scores, with the gradient of the same streams given beforehand."""

import math

import pytest
import torch
from tests.ops.problems import Problem, assert_gradients

from errata.ops.credit import center, future_cost
from errata.ops.fused import engine, workspace
from errata.ops.scores import Head, ModelStates, SparseTeacher, Streams, fused_loss, token_scores


class Decision:
    """Streams from the scores, by credit that needs a response's future and its past. Remembers what it was given."""

    def __init__(self, p, known_at, divide_by_mean=True, baseline="none"):
        self.p, self.known_at, self.divide_by_mean, self.baseline, self.calls = (
            p,
            known_at,
            divide_by_mean,
            baseline,
            [],
        )

    def __call__(self, scores):
        assert not torch.is_grad_enabled()
        self.calls.append(scores)
        return self.streams(scores)

    def streams(self, scores):
        mask = self.p.mask
        cost = scores.divergence.detach() * self.known_at
        credit = center(future_cost(cost, mask), mask, torch.tensor([0, 0, 0, 1, 1, 1]), baseline=self.baseline)
        if self.divide_by_mean:
            credit = credit / (cost.sum(1, keepdim=True) / mask.sum(1, keepdim=True))
        return Streams(-credit, 0.3 * mask, 0.7 * self.known_at)


@pytest.fixture
def problem():
    p = Problem(b=6)
    p.mask[:, 0] = True  # no empty response
    p.tokens = p.tokens.clamp(min=0)
    return p


def test_credit_divided_by_the_responses_mean_cost_is_exact_in_any_tiles(problem, tiling):
    """The mean needs the whole response. Oracle: float64 autograd with all logits at once."""
    p, mask = problem, problem.mask
    decision = Decision(p, mask)
    loss, scores = fused_loss(*p.models, decision, mask=mask)
    ours = torch.autograd.grad(loss, p.leaves)
    assert len(decision.calls) == 1
    exact, leaves = p.exact()
    cost = exact.divergence.detach()
    later = cost.flip(1).cumsum(1).flip(1) - cost  # masked tokens cost 0
    credit = later / (cost.sum(1, keepdim=True) / mask.sum(1, keepdim=True))
    ratio = (exact.student_logp - exact.student_logp.detach()).exp()
    reference = (mask * (0.3 * credit * ratio + 0.7 * exact.divergence)).sum()
    torch.testing.assert_close(loss.double(), reference, atol=1e-5, rtol=1e-5)
    assert_gradients(ours, torch.autograd.grad(reference, leaves), 1e-4)
    for mine, theirs in zip(decision.calls[0], exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.divergence, decision.calls[0].divergence)


def test_one_tile_and_many_agree(problem, monkeypatch):
    p = problem
    results = []
    for tile_bytes in (1 << 30, 24_000):
        monkeypatch.setitem(workspace.TILE_BYTES, "cpu", tile_bytes)
        decision = Decision(p, p.mask)
        loss, _ = fused_loss(*p.models, decision, mask=p.mask)
        results.append((loss, torch.autograd.grad(loss, p.leaves)))
        assert len(decision.calls) == 1
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-6)
    assert_gradients(results[0][1], results[1][1], 1e-5)


@pytest.mark.parametrize("baseline", ["none", "position", "leave_one_out"])
@pytest.mark.parametrize("teacher", ["dense", "dense at some rollouts", "sparse", "both"])
def test_deciding_equals_passing_the_decided_streams_bit_for_bit(baseline, teacher, problem, tiling):
    p = problem
    options = {"mask": p.mask, "teacher_mask": p.mask.clone()}
    known_at, dense = p.mask, p.models[1]
    if teacher == "dense at some rollouts":
        options["teacher_mask"][3:] = False
        known_at = options["teacher_mask"]
    if teacher in ("sparse", "both"):
        drawn = torch.randint(0, 157, (*p.mask.shape, 2))
        at = p.mask & (torch.rand(p.mask.shape) > 0.4)
        options["sparse"] = SparseTeacher(drawn, torch.full(drawn.shape, -math.log(2)), at, tail=False)
        dense, known_at = (None, at) if teacher == "sparse" else (dense, p.mask)
    decision = Decision(p, known_at, divide_by_mean=False, baseline=baseline)
    loss, _ = fused_loss(p.models[0], dense, p.tokens, decision, **options)
    ours = torch.autograd.grad(loss, p.leaves, retain_graph=True)
    assert len(decision.calls) == 1
    streams = decision.streams(decision.calls[0])
    given, _ = fused_loss(p.models[0], dense, p.tokens, streams, **options)
    assert torch.equal(loss, given)
    theirs = torch.autograd.grad(given, p.leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert_gradients(torch.autograd.grad(loss, p.leaves), theirs, 1e-6)  # a second backward
    assert len(decision.calls) == 1
    complete = token_scores(*p.arguments[:2], *(dense or (None, None)), p.tokens, **options)
    torch.testing.assert_close(decision.calls[0].divergence, complete.divergence, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("tile_bytes", "times"), [(1 << 30, 1), (24_000, 2)])
@pytest.mark.parametrize("frozen", [False, True])
def test_tokens_are_scored_twice_only_if_they_do_not_fit_at_once(tile_bytes, times, frozen, problem, monkeypatch):
    p, scored = problem, [0]
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", tile_bytes)
    score = engine.Tile.score

    def counted(self, rows, *arguments):
        scored[0] += rows.stop - rows.start
        return score(self, rows, *arguments)

    monkeypatch.setattr(engine.Tile, "score", counted)
    half = p.mask.clone()
    half[3:] = False
    decision = Decision(p, half)
    with torch.set_grad_enabled(not frozen):
        loss, _ = fused_loss(*p.models, decision, mask=p.mask, teacher_mask=half)
    assert loss.requires_grad != frozen
    assert len(decision.calls) == 1
    assert scored[0] == p.mask.sum() * (1 if frozen else times)


def test_without_gradient_the_loss_is_the_same(problem, tiling):
    p = problem
    with torch.no_grad():
        quiet, _ = fused_loss(*p.models, Decision(p, p.mask), mask=p.mask)
    loud, _ = fused_loss(*p.models, Decision(p, p.mask), mask=p.mask)
    torch.testing.assert_close(quiet, loud.detach(), atol=1e-5, rtol=1e-6)


def test_without_a_mask_all_tokens_are_scored(problem):
    p = problem
    seen = []

    def decide(scores):
        seen.append(scores)
        return Streams(None, None, p.sd_weight)

    loss, _ = fused_loss(*p.models, decide)
    assert (seen[0].student_logp < 0).all()
    assert (seen[0].divergence > 0).all()
    torch.testing.assert_close(loss, fused_loss(*p.models, p.distilled)[0], atol=1e-5, rtol=1e-6)


def test_no_valid_token_is_decided_too(problem):
    p = problem
    decision = Decision(p, torch.zeros_like(p.mask), divide_by_mean=False)
    loss, _ = fused_loss(*p.models, decision, mask=torch.zeros_like(p.mask))
    assert loss.item() == 0
    assert len(decision.calls) == 1
    assert all((g == 0).all() for g in torch.autograd.grad(loss, p.leaves))


def test_a_student_alone(problem, tiling):
    """Without a teacher its scores are ``None``; a head without bias and cap."""
    p = problem
    seen = []

    def decide(scores):
        seen.append(scores)
        return Streams(scores.student_entropy, p.mask.float(), None)

    student = ModelStates(p.hidden, Head(p.weight))
    loss, _ = fused_loss(student, None, p.tokens, decide, mask=p.mask)
    assert seen[0].divergence is None
    given, _ = fused_loss(student, None, p.tokens, Streams(seen[0].student_entropy, p.mask.float(), None), mask=p.mask)
    assert torch.equal(loss, given)
