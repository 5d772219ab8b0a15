"""Training's gradient estimators, with every rollout and every group enumerated: exact bias and variance.

A rollout's gradient is the one that training computes: the method ``distil`` decides the weights (``adapter.py``), and
``ops.divergence`` and ``ops.policy_gradient.clipped_surrogate`` give the two terms. Groups of two are enough for any
group size. With a leave-one-out baseline the group's gradient is a U-statistic of order two (Hoeffding 1948), so its
variance for G responses follows from the moments of pairs.

Shapes: N rows, T tokens, V vocabulary, S states, B rollouts of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.ops.divergence import divergence
from errata.ops.policy_gradient import clipped_surrogate
from errata.theory.adapter import distil_signals
from errata.theory.tabular import Tree, World, full_tree, log_likelihood, world


@dataclass(frozen=True)
class Estimator:
    """One way to estimate DistIL's gradient; the fields have the names of the method ``distil``'s settings (docs/methods.md)."""

    credit: str = "sum"
    cost: str = "kl"
    baseline: str = "leave_one_out"
    discount: float = 1.0
    per_length: bool = False
    """Divide each rollout's loss by its own number of tokens."""
    batch: int = 8
    """Responses over which the baseline ``position`` averages, all to one problem."""

    @property
    def centred(self) -> bool:
        """Whether a rollout's gradient depends on the others of its group."""
        return self.baseline != "none" and self.credit in ("sum", "mean")


@dataclass(frozen=True)
class Rows:
    """N rollouts in groups, as a training batch, with the probability that each group is drawn."""

    student: Tensor
    """(N,T,V) logits, a leaf. Each rollout has its own copy, so its gradient can be read off."""
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
    """(N,) loss of each rollout: Σ_t w_SD·CE_t + w_RL·PG(A_t), with the weights that the method ``distil`` decides.

    The formula is that of docs/methods.md with both denominators 1; the method is called by ``adapter.distil_signals``.
    """
    cross_entropy = divergence(rows.student, rows.teacher, "forward_ce")
    logp = rows.student.log_softmax(-1).gather(-1, rows.tokens[..., None]).squeeze(-1)
    baseline, scale = estimator.baseline, 1.0
    if baseline == "position":  # C_i less the mean with C_i in it is (1 − 1/n)·(C_i less the mean of the others)
        baseline, scale = "leave_one_out", 1 - 1 / estimator.batch
    signals = distil_signals(
        cross_entropy.detach(),
        divergence(rows.teacher, rows.teacher, "forward_ce"),  # the teacher's entropy
        rows.mask,
        rows.group,
        credit=estimator.credit,
        cost=estimator.cost,
        baseline=baseline,
        discount=estimator.discount,
    )
    policy_gradient = clipped_surrogate(logp, logp.detach(), scale * signals.advantage)
    per_token = signals.sd_weight * cross_entropy + signals.rl_weight * policy_gradient
    if estimator.per_length:
        per_token = per_token / rows.mask.sum(-1, keepdim=True)
    return per_token.sum(-1)


def rollout_gradients(rows: Rows, estimator: Estimator) -> Tensor:
    """(N,T,V) gradient of each rollout's loss at the states it visited."""
    (g,) = torch.autograd.grad(loss(rows, estimator).sum(), rows.student)
    return g


def expectation(rows: Rows, g: Tensor, student: Tensor) -> Tensor:
    """(S,V) expected gradient: the rows' gradients (N,T,V), weighted by probability and by 1 / group size."""
    share = rows.weight[:, None, None] / rows.size
    return torch.zeros_like(student).index_add(0, rows.state.flatten(), (share * g).flatten(0, 1))


def expected_gradient(world: World, student: Tensor, estimator: Estimator) -> Tensor:
    """(S,V) exact mean of the estimator, over all rollouts, or over all pairs if it is centred."""
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
        """Cosine of an estimate from G responses to ``target``: <Eĝ, g*> / (|g*|·sqrt(E|ĝ|²))."""
        norm = (self.mean.square().sum() + self.variance(size)).sqrt()
        return float((self.mean * target).sum() / (target.norm() * norm))


def moments(world: World, student: Tensor, estimator: Estimator) -> Moments:
    """Exact moments for a world with one f, from all B rollouts, or from all B² pairs if the estimator is centred.

    Raises ``ValueError`` for more than one f. Also for a centred estimator if rollouts differ in length: the baseline is
    then a mean over the rollouts that have a token at the position, and not a mean over pairs.
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
    first, second = g.view(n, n, 2, *g.shape[1:]).unbind(2)  # (first rollout, second rollout, T, V)
    p = log_likelihood(tree, student).exp()
    shared = tree.state[:, None] == tree.state[None]  # (B,B,T)
    norm = (first.square() + second.square()).sum((-1, -2)) + 2 * ((first * second).sum(-1) * shared).sum(-1)
    given = conditional(tree, p, first, second)
    return Moments(mean, float(p @ given.square().sum((-1, -2))) / 4 - square, float(p @ norm @ p) / 4 - square)


def conditional(tree: Tree, p: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(B,S,V) expected sum of a pair's two gradients, given the first rollout of the pair."""
    table = torch.zeros(len(p), len(tree.prefixes), first.shape[-1], dtype=first.dtype)
    own = torch.einsum("j,ijtv->itv", p, first)
    table.scatter_add_(1, tree.state[..., None].expand_as(own), own)
    return table.index_add(1, tree.state.flatten(), (p[:, None, None] * second).flatten(1, 2))


def random_world(
    vocabulary: int, horizon: int, seed: int, *, spread: float = 1.0, shift: float = 1.5
) -> tuple[World, Tensor]:
    """A student with logits N(0, spread²), and as expert the same model shown feedback: its logits + N(0, shift²)."""
    return random_policies(full_tree(vocabulary, horizon), seed, spread=spread, shift=shift)


def random_policies(
    tree: Tree, seed: int, *, spread: float = 1.0, shift: float = 1.5, experts: int = 1
) -> tuple[World, Tensor]:
    """``random_world`` on a given tree, with ``experts`` experts. All rewards are 0."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*n: int) -> Tensor:
        return torch.randn(*n, *tree.allowed.shape, generator=generator, dtype=torch.float64)

    student = spread * noise() + tree.logits()
    return world(
        tree, torch.zeros(tree.tokens.shape[0], dtype=torch.float64), student + shift * noise(experts)
    ), student


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape."""
    return float((a * b).sum() / (a.norm() * b.norm()))
