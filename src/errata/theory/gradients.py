"""The gradient estimators that training uses, with every rollout and every group written out.

A rollout's gradient is what training computes: ``ops.divergence`` and ``ops.policy_gradient.clipped_surrogate`` under
the credits of ``ops.credit``. A group of two is enough for any group size: with a leave-one-out baseline the group's
gradient is a U-statistic of order two (Hoeffding 1948), so its variance for G responses follows from that of pairs.

Shapes: N rows, T tokens, V vocabulary, S states, B rollouts of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.ops.credit import center, excess_cost, future_cost
from errata.ops.divergence import divergence
from errata.ops.policy_gradient import clipped_surrogate
from errata.theory.tabular import Tree, World, full_tree, log_likelihood, world


@dataclass(frozen=True)
class Estimator:
    """One way to estimate DistIL's gradient; the names are those of the method ``distil`` and of METHODS section 4."""

    credit: str = "sum"
    cost: str = "kl"
    baseline: str = "leave_one_out"
    discount: float = 1.0
    per_length: bool = False
    """Divide each rollout's loss by its own number of tokens."""
    batch: int = 8
    """Responses over which ``position`` averages, all to one problem."""

    @property
    def centred(self) -> bool:
        """Whether a rollout's gradient depends on the others of its group."""
        return self.baseline != "none" and self.credit in ("sum", "mean")


@dataclass(frozen=True)
class Rows:
    """A batch as training sees it, N rollouts in groups, with the probability that the group is drawn."""

    student: Tensor
    """(N,T,V) logits, a leaf: the gradient is taken here, so that each rollout keeps its own."""
    teacher: Tensor
    """(N,T,V) logits."""
    tokens: Tensor
    """(N,T) int64."""
    mask: Tensor
    """(N,T) bool."""
    state: Tensor
    """(N,T) int64: rows of the policy's table."""
    group: Tensor
    """(N,) int64."""
    weight: Tensor
    """(N,) probability of the rollout's group."""
    size: int
    """Rollouts per group, adjacent rows."""


def groups(world: World, student: Tensor, size: int = 2) -> Rows:
    """Every group of ``size`` independent rollouts under one f: N = F·B^size·size rows, f slowest."""
    tree, n = world.tree, world.tree.tokens.shape[0]
    member = torch.cartesian_prod(*[torch.arange(n)] * size).view(-1, size)
    probability = log_likelihood(tree, student.detach()).exp()[member].prod(-1)
    n_feedback, row = len(world.feedback), member.flatten()
    state = tree.state[row]
    return Rows(
        student=student.detach()[state].repeat(n_feedback, 1, 1).requires_grad_(True),
        teacher=world.expert[:, state].flatten(0, 1),
        tokens=tree.tokens[row].repeat(n_feedback, 1),
        mask=tree.mask[row].repeat(n_feedback, 1),
        state=state.repeat(n_feedback, 1),
        group=torch.arange(n_feedback * len(member)).repeat_interleave(size),
        weight=(world.feedback[:, None] * probability).flatten().repeat_interleave(size),
        size=size,
    )


def loss(rows: Rows, estimator: Estimator) -> Tensor:
    """(N,) each rollout's loss: Σ_t w_SD·CE_t + w_RL·PG(A_t = −credit_t), as METHODS sections 0 and 4 write it."""
    local = divergence(rows.student, rows.teacher, "forward_ce")
    weight = rows.mask.to(local.dtype)
    if estimator.per_length:
        weight = weight / weight.sum(-1, keepdim=True)
    if estimator.credit == "none":
        return (weight * local).sum(-1)
    cost = divergence(rows.student, rows.teacher, {"ce": "forward_ce", "kl": "forward_kl"}[estimator.cost]).detach()
    kind = "sum" if estimator.credit == "sum" else "mean"
    future = future_cost(cost, rows.mask, kind=kind, discount=estimator.discount)
    if estimator.credit == "reweight":
        return (weight * local * (1 + future)).sum(-1)
    logp = rows.student.log_softmax(-1).gather(-1, rows.tokens[..., None]).squeeze(-1)
    baseline, scale = estimator.baseline, 1.0
    if baseline == "position":  # C_i less the mean with C_i in it is (1 − 1/n)·(C_i less the mean of the others)
        baseline, scale = "leave_one_out", 1 - 1 / estimator.batch
    if baseline == "per_token":
        excess = excess_cost(cost, rows.mask, rows.group)
        advantage = -future_cost(excess, rows.mask, kind=kind, discount=estimator.discount)
    else:
        advantage = -scale * center(future, rows.mask, rows.group, baseline=baseline)
    return (weight * (local + clipped_surrogate(logp, logp.detach(), advantage))).sum(-1)


def rollout_gradients(rows: Rows, estimator: Estimator) -> Tensor:
    """(N,T,V) gradient of each rollout's loss at the states it visited."""
    (g,) = torch.autograd.grad(loss(rows, estimator).sum(), rows.student)
    return g


def expectation(rows: Rows, g: Tensor, student: Tensor) -> Tensor:
    """(S,V) the rows' gradients (N,T,V), each by its group's probability and its share of the group."""
    share = rows.weight[:, None, None] / rows.size
    return torch.zeros_like(student).index_add(0, rows.state.flatten(), (share * g).flatten(0, 1))


def expected_gradient(world: World, student: Tensor, estimator: Estimator) -> Tensor:
    """(S,V) what the estimator is on average, exactly: over all rollouts, or over all pairs if it is centred."""
    rows = groups(world, student, 2 if estimator.centred else 1)
    return expectation(rows, rollout_gradients(rows, estimator), student)


@dataclass(frozen=True)
class Moments:
    """First two moments of an estimator that averages G independent responses to one problem."""

    mean: Tensor
    """(S,V)."""
    first: float
    """ζ1: variance of a pair's mean gradient given one of the two, summed over the logits."""
    pair: float
    """ζ2: variance of a pair's mean gradient, summed over the logits."""

    def variance(self, size: int) -> float:
        """Of the mean over ``size`` >= 2 responses: (4(G−2)·ζ1 + 2·ζ2) / (G(G−1)), that of a U-statistic of order 2."""
        return (4 * (size - 2) * self.first + 2 * self.pair) / (size * (size - 1))

    def alignment(self, target: Tensor, size: int) -> float:
        """Cosine one gets with G responses: <Eĝ, g*> / (|g*|·sqrt(E|ĝ|²)); scale does not matter."""
        norm = (self.mean.square().sum() + self.variance(size)).sqrt()
        return float((self.mean * target).sum() / (target.norm() * norm))


def moments(world: World, student: Tensor, estimator: Estimator) -> Moments:
    """Exact moments for a world with one f: from all B rollouts, or from all B² pairs if the estimator is centred.

    Raises ``ValueError`` for more than one f, and for a centred estimator where rollouts differ in length: its baseline
    is then a mean over those still alive, and no mean over pairs.
    """
    if len(world.feedback) != 1:
        raise ValueError(
            f"world: moments are computed for one feedback, got {len(world.feedback)}; average over worlds"
        )
    tree, n = world.tree, world.tree.tokens.shape[0]
    if estimator.centred and not tree.mask.all():
        raise ValueError("world: rollouts differ in length; moments of a centred estimator need a full tree")
    rows = groups(world, student, 2 if estimator.centred else 1)
    g = rollout_gradients(rows, estimator)
    mean = expectation(rows, g, student)
    square = float(mean.square().sum())
    if not estimator.centred:  # independent responses: the mean of G has variance one/G
        one = float(rows.weight @ g.square().sum((-1, -2))) - square
        return Moments(mean, one / 4, one / 2)
    mine, theirs = g.view(n, n, 2, *g.shape[1:]).unbind(2)  # (my rollout, theirs, T, V)
    p = log_likelihood(tree, student).exp()
    shared = tree.state[:, None] == tree.state[None]  # (B,B,T)
    norm = (mine.square() + theirs.square()).sum((-1, -2)) + 2 * ((mine * theirs).sum(-1) * shared).sum(-1)
    given = conditional(tree, p, mine, theirs)
    return Moments(mean, float(p @ given.square().sum((-1, -2))) / 4 - square, float(p @ norm @ p) / 4 - square)


def conditional(tree: Tree, p: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """(B,S,V) expected sum of a pair's gradients given my rollout: mine at my states, theirs spread over all states."""
    table = torch.zeros(len(p), len(tree.prefixes), mine.shape[-1], dtype=mine.dtype)
    own = torch.einsum("j,ijtv->itv", p, mine)
    table.scatter_add_(1, tree.state[..., None].expand_as(own), own)
    return table.index_add(1, tree.state.flatten(), (p[:, None, None] * theirs).flatten(1, 2))


def random_world(
    vocabulary: int, horizon: int, seed: int, *, spread: float = 1.0, shift: float = 1.5
) -> tuple[World, Tensor]:
    """A student with logits N(0, spread²), and as expert the same model shown feedback: its logits + N(0, shift²)."""
    return random_policies(full_tree(vocabulary, horizon), seed, spread=spread, shift=shift)


def random_policies(
    tree: Tree, seed: int, *, spread: float = 1.0, shift: float = 1.5, experts: int = 1
) -> tuple[World, Tensor]:
    """``random_world`` on a tree of one's own, with one expert for each f. No reward."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*n: int) -> Tensor:
        return torch.randn(*n, *tree.allowed.shape, generator=generator, dtype=torch.float64)

    student = spread * noise() + tree.logits()
    return world(
        tree, torch.zeros(tree.tokens.shape[0], dtype=torch.float64), student + shift * noise(experts)
    ), student


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors of one shape."""
    return float((a * b).sum() / (a.norm() * b.norm()))
