"""Worlds so small that every rollout can be listed, with exact expectations.

A ``Tree`` lists all rollouts. A ``World`` adds rewards, and one expert for each feedback f, which the student does not
see. A policy is a table of logits, one row per state. All expectations are sums over all rollouts, in float64, and
differentiable.

Shapes: B rollouts of the tree, T tokens, S states, V vocabulary, F feedbacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from errata.ops.divergence import divergence

ABSENT = -1e3
"""Logit of an action of probability 0. exp of it is exactly 0, the log-prob stays finite, and 0·log 0 is 0."""

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """All rollouts of a process with a finite horizon. A state is the sequence of tokens so far."""

    tokens: Tensor
    """(B,T) int64; 0 where masked."""
    mask: Tensor
    """(B,T) bool: the rollout has not ended."""
    state: Tensor
    """(B,T) int64: row of the policy's table that chooses the token; 0 where masked."""
    prefixes: tuple[Prefix, ...]
    """The tokens so far, for each of the S states; state 0 is the empty prefix."""
    allowed: Tensor
    """(S,V) bool: actions that exist."""

    def logits(self, probabilities: Mapping[Prefix, Sequence[float]] | None = None) -> Tensor:
        """(S,V) logits with the given probabilities. States that are not given are uniform over their actions."""
        table = torch.where(self.allowed, 0.0, ABSENT).to(torch.float64)
        for prefix, row in (probabilities or {}).items():
            p = torch.zeros(self.allowed.shape[1], dtype=torch.float64)
            p[: len(row)] = torch.tensor(row, dtype=torch.float64)
            table[self.prefixes.index(prefix)] = p.log().clamp_min(ABSENT)
        return table

    def rollouts(self) -> list[Prefix]:
        """The B rollouts as tuples."""
        return [tuple(row[m].tolist()) for row, m in zip(self.tokens, self.mask, strict=True)]

    def score(self, reward: Callable[[Prefix], float]) -> Tensor:
        """(B,) the reward of each rollout."""
        return torch.tensor([reward(y) for y in self.rollouts()], dtype=torch.float64)


def tree(rollouts: Iterable[Prefix], vocabulary: int) -> Tree:
    """The tree of the given rollouts. Raises ``ValueError`` if one rollout is a prefix of another."""
    rows = sorted(rollouts)
    horizon = max(map(len, rows))
    index: dict[Prefix, int] = {}
    for t in range(horizon):  # level by level, so that the empty prefix is state 0
        for y in rows:
            if t < len(y):
                index.setdefault(y[:t], len(index))
    if ambiguous := next((y for y in rows if y in index), None):
        raise ValueError(f"rollouts: {ambiguous} is a prefix of another rollout; end it with a token of its own")
    tokens = torch.zeros(len(rows), horizon, dtype=torch.int64)
    state, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    allowed = torch.zeros(len(index), vocabulary, dtype=torch.bool)
    for b, y in enumerate(rows):
        tokens[b, : len(y)] = torch.tensor(y)
        state[b, : len(y)] = torch.tensor([index[y[:t]] for t in range(len(y))])
        mask[b, : len(y)] = True
        allowed[state[b, : len(y)], tokens[b, : len(y)]] = True
    return Tree(tokens, mask, state, tuple(index), allowed)


@cache
def full_tree(vocabulary: int, horizon: int) -> Tree:
    """Every rollout of exactly T tokens."""
    return tree(itertools.product(range(vocabulary), repeat=horizon), vocabulary)


@cache
def stopping_tree(vocabulary: int, horizon: int, stop: int = 0) -> Tree:
    """Every rollout that ends with its first ``stop`` token, or after T tokens."""
    whole = itertools.product(range(vocabulary), repeat=horizon)
    return tree({y[: y.index(stop) + 1] if stop in y else y for y in whole}, vocabulary)


@dataclass(frozen=True)
class World:
    """A tree with rewards and experts. Only the expert sees f; the reward may depend on it."""

    tree: Tree
    reward: Tensor
    """(F,B)."""
    expert: Tensor
    """(F,S,V) logits."""
    feedback: Tensor
    """(F,) probabilities of f."""


def world(tree: Tree, reward: Tensor, expert: Tensor, feedback: Sequence[float] | None = None) -> World:
    """A world; ``reward`` (B,) or (F,B), ``expert`` (S,V) or (F,S,V), ``feedback`` uniform unless given."""
    expert = expert if expert.dim() == 3 else expert[None]
    n = expert.shape[0]
    p = (
        torch.full((n,), 1 / n, dtype=torch.float64)
        if feedback is None
        else torch.tensor(feedback, dtype=torch.float64)
    )
    return World(tree, reward.expand(n, -1), expert, p)


def log_likelihood(tree: Tree, logits: Tensor) -> Tensor:
    """(...,B) log-probability of every rollout under a table of logits (...,S,V)."""
    token = logits.log_softmax(-1)[..., tree.state, tree.tokens]
    return (token * tree.mask).sum(-1)


def value(world: World, student: Tensor) -> Tensor:
    """J(π): the student's expected reward. Scalar."""
    return (world.feedback @ world.reward) @ log_likelihood(world.tree, student).exp()


def expert_value(world: World) -> Tensor:
    """J(π_T): the expected reward of the expert, which sees f. Scalar."""
    return world.feedback @ (world.reward * log_likelihood(world.tree, world.expert).exp()).sum(-1)


def disagreement(world: World, student: Tensor, kind: str = "forward_ce") -> Tensor:
    """(F,S) divergence of the student from each expert at each state."""
    return divergence(student.expand_as(world.expert), world.expert, kind)


def objective(world: World, student: Tensor, kind: str = "forward_ce", states_from: Tensor | None = None) -> Tensor:
    """L(θ) = E_f E_{y~π} Σ_t D_t. For D = CE it is DistIL's objective (arXiv 2606.05152). Scalar, nats.

    ``states_from`` (S,V): logits of another policy, held fixed, that chooses the states instead of the student. The
    gradient with ``states_from=student.detach()`` is the local term alone.
    """
    weight = log_likelihood(world.tree, student if states_from is None else states_from).exp()
    per_token = disagreement(world, student, kind)[:, world.tree.state] * world.tree.mask
    return world.feedback @ (per_token.sum(-1) @ weight)


def neutral_objective(world: World, student: Tensor, kind: str = "forward_kl") -> Tensor:
    """Σ_i P_i·m_i with P_i, the probability that a rollout reaches position i, held fixed. Scalar.

    m_i is the mean D at position i of the rollouts that reach it. The gradient is that of ``objective`` without the part
    that comes of changing lengths; ``ops.credit.excess_cost`` estimates it.
    """
    weight = log_likelihood(world.tree, student).exp()
    per_token = disagreement(world, student, kind)[:, world.tree.state] * world.tree.mask
    alive = weight @ world.tree.mask.to(weight.dtype)
    mean = torch.einsum("b,fbt->ft", weight, per_token) / alive
    return (world.feedback @ mean) @ alive.detach()


def gradient(function: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """(S,V) gradient of a scalar function of the student's logits."""
    leaf = student.detach().clone().requires_grad_(True)
    (g,) = torch.autograd.grad(function(leaf), leaf)
    return g


def action_values(world: World, policy: Tensor) -> Tensor:
    """(F,S,V) Q^π(s,a): expected reward of a in s, then following ``policy`` (S,V) or (F,S,V); 0 for absent actions."""
    t = world.tree
    logp = (policy.log_softmax(-1)[..., t.state, t.tokens] * t.mask).expand(len(world.feedback), -1, -1)
    after = (logp.flip(-1).cumsum(-1).flip(-1) - logp).exp() * t.mask  # probability of the rest of the rollout
    q = torch.zeros(*world.expert.shape, dtype=torch.float64)
    flat = (t.state * t.allowed.shape[1] + t.tokens).flatten()
    return q.flatten(1).index_add(1, flat, (after * world.reward[..., None]).flatten(1)).view_as(q)


def visits(tree: Tree, logits: Tensor) -> Tensor:
    """(S,) probability that a rollout of the policy passes through each state."""
    weight = log_likelihood(tree, logits).exp()[:, None] * tree.mask
    return torch.zeros(len(tree.prefixes), dtype=torch.float64).index_add(0, tree.state.flatten(), weight.flatten())


def posterior_expert(world: World, policy: Tensor) -> Tensor:
    """The policy conditioned on success: (S,V) logits of π(a|s, success) ∝ π(a|s)·Q^π(s,a), for rewards in [0,1]."""
    q = (world.feedback @ action_values(world, policy).flatten(1)).view_as(policy)
    return policy.log_softmax(-1) + q.log().clamp_min(ABSENT)


def descend(objective: Callable[[Tensor], Tensor], student: Tensor, *, steps: int, rate: float) -> Iterable[Tensor]:
    """Plain gradient descent on the logits; yields the table before each step and after the last."""
    for _ in range(steps):
        yield student
        student = student - rate * gradient(objective, student)
    yield student
