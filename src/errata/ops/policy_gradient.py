"""Policy-gradient terms per token, and the advantages of a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import as_float, one_of, per_rollout, same_shape
from .credit import group_sum
from .divergence import importance_weight


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor | None, advantage: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28
) -> Tensor:
    """-min(ρA, clip(ρ, 1-clip_low, 1+clip_high)·A) per token, to be minimised; ρ = exp(logp - old_logp).

    PPO's (arXiv 1707.06347) with DAPO's two-sided bounds (arXiv 2503.14476).

    Args:
        logp: (B, T) log-probability of the sampled tokens, with gradient.
        old_logp: (B, T) the same when they were sampled; ``None`` means now (ρ = 1, the plain policy gradient).
        advantage: (B, T), or (B,) for one value per response.
        clip_low, clip_high: the trust region; DAPO's 0.2 and 0.28.

    Returns:
        (B, T), float32.

    Raises:
        ValueError: on shapes that do not agree.
    """
    logp, old, advantage = _aligned(logp, old_logp, advantage)
    ratio = (logp - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage)


def importance_surrogate(logp: Tensor, old_logp: Tensor | None, advantage: Tensor, *, clip: float = 2.0) -> Tensor:
    """-sg min(ρ, clip)·A·logp per token, to be minimised: the form of DistIL's released code.

    Shapes and errors as ``clipped_surrogate``.
    """
    logp, old, advantage = _aligned(logp, old_logp, advantage)
    return -importance_weight(logp, old, clip=clip) * advantage * logp


@torch.no_grad()
def group_advantage(reward: Tensor | Sequence[float | None], group: Tensor, *, scale: str = "none") -> Tensor:
    """Reward minus the group's mean, per response.  [GRPO; without the division, Dr. GRPO]

    Args:
        reward: (B,); NaN (or ``None`` in a list) means that no verifier judged the response: it is left out of mean and
            deviation.
        group: (B,) integer ids.
        scale: ``none``; ``group`` divides by the group's standard deviation + 1e-4; ``batch`` by that of the whole
            batch (both with the n-1 denominator, as TRL's).

    Returns:
        (B,), float32; 0 for unjudged responses and for those without a judged sibling.

    Raises:
        ValueError: on differing shapes or an unknown ``scale``.
    """
    if not isinstance(reward, Tensor):
        reward = torch.tensor([float("nan") if r is None else r for r in reward], device=group.device)
    per_rollout("group", group, reward.shape[0])
    one_of("scale", scale, ("none", "group", "batch"))
    judged = ~torch.isnan(as_float(reward))
    value, weight = as_float(reward).masked_fill(~judged, 0.0), judged.to(as_float(reward).dtype)
    advantage = (value - group_sum(value, group) / group_sum(weight, group).clamp(min=1)) * weight
    if scale == "none":
        return advantage
    over = group if scale == "group" else torch.zeros_like(group)
    count = group_sum(weight, over).clamp(min=1)
    residual = (value - group_sum(value, over) / count) * weight
    deviation = (group_sum(residual.square(), over) / (count - 1).clamp(min=1)).sqrt()
    return advantage / (deviation + 1e-4)


def _aligned(logp: Tensor, old_logp: Tensor | None, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    same_shape("logp", logp, old_logp=old_logp)
    if advantage.dim() == logp.dim() - 1:
        advantage = advantage.unsqueeze(-1)
    if advantage.shape not in (logp.shape, (*logp.shape[:-1], 1)):
        raise ValueError(
            f"advantage: shape {tuple(advantage.shape)} is not logp's {tuple(logp.shape)} or one per response"
        )
    logp = as_float(logp)
    return logp, (logp if old_logp is None else as_float(old_logp)).detach(), as_float(advantage).detach()
