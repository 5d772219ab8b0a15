"""The cost-to-go of a token, and baselines that lower its variance.

A *position* is a token's index among its response's own valid tokens: padding on either side and masked tokens in the
middle (a tool's output) do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import masked, one_of, per_rollout, same_shape, two_dimensional


@torch.no_grad()
def future_cost(
    cost: Tensor, mask: Tensor, *, kind: str = "sum", discount: float = 1.0, ratio: Tensor | None = None
) -> Tensor:
    """C_t, the cost of all tokens after t, without t itself (DistIL: the future expert-student disagreement).

    ``sum``: C_t = Σ_{i>t} γ^(i-t-1)·c_i, the exact gradient's weight. ``mean``: the same divided by the number of
    tokens after t (at least 1), as in DistIL's released science and coding runs. Masked tokens cost nothing and are
    no step of the discount.

    Args:
        cost: (B, T), nats per token.
        mask: (B, T), 1 on tokens the student generated.
        kind: ``sum`` or ``mean``.
        discount: γ in (0, 1].
        ratio: (B, T), probability of each token under the policy divided by that under the sampler. With it
            C_t = Σ_{i>t} γ^(i-t-1)·(Π_{t<j<i} ratio_j)·c_i, whose mean over the sampler's continuations is that over the
            policy's (per-decision importance sampling, Precup et al. 2000).

    Returns:
        (B, T) without gradient, 0 at masked positions and at each response's last token.

    Raises:
        ValueError: on differing shapes, an unknown ``kind`` or a discount outside (0, 1].
    """
    two_dimensional("cost", cost)
    same_shape("cost", cost, mask=mask)
    one_of("kind", kind, ("sum", "mean"))
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount: {discount} is not in (0, 1]")
    column = positions(mask)
    total = _after(compact(masked(cost, mask), column))  # what a token is charged for starts at the next one
    likelihood = None
    if ratio is not None:
        same_shape("cost", cost, ratio=ratio)
        likelihood = _after(compact(masked(ratio, mask), column))
    step = 1
    while (
        step < total.shape[1]
    ):  # each round doubles the number of tokens summed: no loop over T, and pairwise accuracy
        later_part = discount**step * total[:, step:]
        if likelihood is not None:  # of the next `step` tokens
            later_part = later_part * likelihood[:, :-step]
            likelihood[:, :-step] = likelihood[:, :-step] * likelihood[:, step:]
        total[:, :-step] = total[:, :-step] + later_part
        step *= 2
    future = spread(total, column)
    if kind == "mean":
        later = mask.bool().sum(1, keepdim=True) - 1 - column
        future = future / later.clamp(min=1)
    return masked(future, mask)


@torch.no_grad()
def center(cost_to_go: Tensor, mask: Tensor, group: Tensor, *, baseline: str = "leave_one_out") -> Tensor:
    """Subtract from C_t what C is at the same position in comparable responses; the policy gradient's mean stays, its
    variance falls.

    ``leave_one_out``: the mean over the *other* responses of the group that have a token there. It depends on nothing
    the response itself sampled, so the gradient stays unbiased. ``position``: the mean over all responses of the
    batch that have a token there, itself included (which shrinks the gradient a little). ``none``: nothing. A token
    whose position no other response has reached keeps its C: there is nothing to compare it with.

    Responses that have ended could also count as cost 0, which is unbiased too. They are left out because a token is only
    ever sampled in a response that got so far, and of that the survivors' mean is the nearer prediction: on long responses
    in groups of eight its variance is the lower (``tests/ops/test_credit.py``), on short ones in groups of four the higher.

    Args:
        cost_to_go: (B, T) from ``future_cost``.
        mask: (B, T).
        group: (B,) integer ids; responses with one id answer one problem.

    Returns:
        (B, T) without gradient, 0 at masked positions.

    Raises:
        ValueError: on differing shapes or an unknown ``baseline``.
    """
    two_dimensional("cost_to_go", cost_to_go)
    same_shape("cost_to_go", cost_to_go, mask=mask)
    per_rollout("group", group, cost_to_go.shape[0])
    one_of("baseline", baseline, ("none", "position", "leave_one_out"))
    value = masked(cost_to_go, mask)
    if baseline == "none":
        return value
    column = positions(mask)
    aligned, alive = compact(value, column), compact(masked(torch.ones_like(value), mask), column)
    if baseline == "position":
        group = torch.zeros_like(group)
    total, count = group_sum(aligned, group), group_sum(alive, group)
    others, number = total - aligned, count - alive
    mean = total / count.clamp(min=1) if baseline == "position" else others / number.clamp(min=1)
    centred = torch.where(number > 0, aligned - mean, aligned)
    return masked(spread(centred, column), mask)


@torch.no_grad()
def excess_cost(cost: Tensor, mask: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cost of each token less the mean cost of the group's *other* responses at the same position: e_i = c_i - b_i.

    Summed by ``future_cost`` this leaves length out of the credit. With P_i the probability that a response reaches position i
    and m_i its mean cost there, the objective is sum_i P_i·m_i and its gradient sum_i (m_i·∇P_i + P_i·∇m_i). Subtracting
    an independent estimate b_i of m_i before the sum takes away the first part, which rewards short answers, and keeps the
    second. A token that no other response can be compared with costs 0, so the group's excess at every position sums to 0:
    on average over the group, going on costs exactly what ending costs. Where responses have one length the result is
    ``center(future_cost(cost))``.

    Args:
        cost: (B, T), nats per token.
        mask: (B, T), 1 on tokens whose cost is known.
        group: (B,) integer ids; responses with one id answer one problem.
        weight: (B,) what each response counts for in the others' mean, such as its probability under the policy divided by
            that under the sampler; 1 unless given.

    Returns:
        (B, T) without gradient, 0 at masked positions.

    Raises:
        ValueError: on differing shapes.
    """
    two_dimensional("cost", cost)
    same_shape("cost", cost, mask=mask)
    per_rollout("group", group, cost.shape[0])
    column = positions(mask)
    value = masked(cost, mask)
    aligned, alive = compact(value, column), compact(masked(torch.ones_like(value), mask), column)
    if weight is None:
        number = group_sum(alive, group) - alive
        mean = (group_sum(aligned, group) - aligned) / number.clamp(min=1)
    else:
        per_rollout("weight", weight, cost.shape[0])
        counts = alive * weight.to(alive)[:, None]
        number = group_sum(counts, group) - counts
        mean = (group_sum(counts * aligned, group) - counts * aligned) / number.clamp(min=1e-12)
    return masked(spread(torch.where(number > 1e-12, aligned - mean, 0.0), column), mask)


@torch.no_grad()
def persistent_share(excess: Tensor, mask: Tensor, *, discount: float) -> float:
    """The share of the future excess's variance that is more than the noise of unrelated tokens, in [0, 1).

    With C_t = Σ_{i>t} γ^(i−t−1)·e_i and V_t = Σ_{i>t} γ^(2(i−t−1))·e_i² it is max(0, 1 − Σ V / Σ C²), sums over ``mask``. If the
    excess costs e of a rollout's tokens have mean 0 and are unrelated, C² is V on average and the share is about 0: no earlier
    token can be held responsible. If they go on from token to token, as in a rollout that has lost its way, C² is far above V.
    Like James and Stein's factor it shrinks a noisy estimate towards 0.

    Args:
        excess: (B, T) costs less a baseline that does not depend on the rollout (``excess_cost``), in nats.
        mask: (B, T), which tokens count.
        discount: γ in (0, 1].
    Raises:
        ValueError: differing shapes, or a discount outside (0, 1].
    """
    credit = masked(future_cost(excess, mask, discount=discount), mask)
    noise = masked(future_cost(excess.square(), mask, discount=discount**2), mask)
    total = float(credit.square().sum())
    return max(0.0, 1 - float(noise.sum()) / total) if total > 0 else 0.0


def limit_scale(credit: Tensor, mask: Tensor, largest: float) -> Tensor:
    """Credit (B, T) divided by one number, so that its root mean square over ``mask`` (B, T) is at most ``largest``.

    Smaller credit stays as it is. For comparison: GRPO's advantage has .5 at most for 0/1 rewards, and 1 where it is divided
    by the standard deviation. Raises ``ValueError`` on differing shapes, or a limit that is not above 0.
    """
    two_dimensional("credit", credit)
    same_shape("credit", credit, mask=mask)
    if not largest > 0:
        raise ValueError(f"largest: {largest} is not above 0")
    value = masked(credit, mask)
    size = (value.square().sum() / mask.sum().clamp(min=1)).sqrt()
    return value / (size / largest).clamp(min=1)


def _after(value: Tensor) -> Tensor:
    """(B, T) values moved one token to the left, 0 at the end."""
    return torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)


def positions(mask: Tensor) -> Tensor:
    """(B, T) index of each token among its row's valid ones; T, one past the end, where masked."""
    valid = mask.bool()
    return torch.where(valid, valid.long().cumsum(1) - 1, mask.shape[1])


def compact(value: Tensor, column: Tensor) -> Tensor:
    """Move each row's valid tokens to its front, in order, and fill the rest with 0. ``column`` is
    ``positions(mask)``."""
    front = value.new_zeros(value.shape[0], value.shape[1] + 1).scatter(1, column, value)
    return front[:, :-1].contiguous()


def spread(front: Tensor, column: Tensor) -> Tensor:
    """Undo ``compact``; what stood at masked positions comes back as 0."""
    return torch.cat([front, torch.zeros_like(front[:, :1])], dim=1).gather(1, column)


def group_sum(value: Tensor, group: Tensor) -> Tensor:
    """For every row, the sum of ``value`` (B, ...) over the rows with its id."""
    _, index = torch.unique(group, return_inverse=True)
    return torch.zeros_like(value).index_add(0, index, value)[index]
