"""Stops a run in the step in which its loss or a weight is no longer finite, and says which one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from errata.ops.scores import TokenScores
from errata.training.batch import GenerationBatch

_MEND = "the checkpoints before it are whole; lower learning_rate or max_grad_norm and resume from the last one"


def check_loss(loss: Tensor, batch: GenerationBatch, scores: TokenScores, step: int) -> None:
    """Raises ``FloatingPointError`` naming the step, the term of the loss and the first bad rollout, if the loss is not finite.

    Args:
        loss: of one micro-batch.
        batch: the micro-batch, with its signals.
        scores: (B,T) each, without gradient.
        step: the optimizer step, from 1.
    """
    if loss.isfinite():
        return
    mask, signals = batch.tokens.mask, batch.signals
    terms: list[tuple[str, Tensor | None, Tensor]] = [
        ("policy-gradient term: the policy's log-probability", scores.student_logp, mask),
    ]
    if signals is not None:
        reinforced, distilled = mask & (signals.rl_weight > 0), mask & (signals.sd_weight > 0)
        terms = [
            ("policy-gradient term: the advantage", signals.advantage, mask),
            ("policy-gradient term: the policy's log-probability", scores.student_logp, reinforced),
            ("distillation term: the teacher's log-probability", scores.teacher_logp, distilled),
            ("distillation term: the divergence", scores.divergence, distilled),
            ("policy's log-probability", scores.student_logp, mask),
        ]
    for name, values, where in terms:
        bad = None if values is None else where & ~values.isfinite()
        if bad is not None and bad.any():
            row, token = bad.nonzero()[0].tolist()
            rollout = batch.rollouts[row]
            raise FloatingPointError(
                f"step {step}: the loss is {float(loss)}, from the {name}, first at token {token} of rollout "
                f"{rollout.index} (problem {rollout.problem_id!r}); {_MEND}"
            )
    raise FloatingPointError(f"step {step}: the loss is {float(loss)}, though every token's terms are finite; {_MEND}")


def bad_weight(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """The name of the first trained weight that holds NaN or infinity. One pass over the weights of this process."""
    by_device: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
    for name, parameter in parameters:
        weight = _local(parameter)
        if parameter.requires_grad and weight.numel():
            by_device.setdefault((weight.device, weight.dtype), []).append((name, weight))
    for group in by_device.values():
        # NaN is propagated by both; on a CPU this is nine times as fast as the largest absolute value.
        extremes = torch.stack([torch.stack(torch.aminmax(w)) for _, w in group])
        finite = extremes.isfinite().all(1)
        if not finite.all():
            return group[int((~finite).nonzero()[0])][0]
    return None


def _local(parameter: Any) -> Tensor:
    """The part of a weight that this process holds."""
    weight: Tensor = parameter.detach()
    return weight.to_local() if hasattr(weight, "to_local") else weight


class StopAtBadWeights(TrainerCallback):  # type: ignore[misc]
    """Raises ``FloatingPointError`` after an optimizer step that made a weight NaN or infinite, before it can be saved."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        name = bad_weight(kwargs["model"].named_parameters())
        if name is not None:
            raise FloatingPointError(
                f"step {state.global_step}: weight {name!r} holds NaN or infinity after it; {_MEND}"
            )
