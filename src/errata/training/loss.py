"""The loss of one micro-batch: the two-stream objective over the tokens, divided as TRL's ``loss_type`` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from errata.ops.reduce import token_weights
from errata.ops.scores import Head, ModelStates, Objective, Streams, TokenScores, fused_loss
from errata.training.batch import GenerationBatch, LocalSignals
from errata.training.scoring import TeacherValues

Decide = Callable[[TokenScores], LocalSignals]
"""The complete scores of a micro-batch that is the whole generation batch -> its signals."""


@dataclass(frozen=True)
class Averaging:
    """What each token's loss is divided by (``errata.ops.reduce.token_weights``)."""

    loss_type: str
    """dapo, grpo, bnpo or dr_grpo."""
    max_completion_length: int
    """Tokens, for ``dr_grpo``."""
    accumulation: int
    """Micro-batches of this optimizer step."""
    steps_per_generation: int
    """Micro-batches of a generation batch."""
    processes: int

    def weights(self, counted: Tensor, count: Tensor, among: Tensor | None = None) -> Tensor:
        """(B,T) weight of each token.

        Args:
            counted: (B,T) bool, the tokens that a stream counts.
            count: how many there are in the generation batch of all processes.
            among: see ``token_weights``.
        """
        # The optimizer averages over processes and micro-batches.
        share = self.accumulation / self.steps_per_generation / self.processes
        return token_weights(
            counted,
            self.loss_type,
            total=count * share,
            max_length=self.max_completion_length,
            accumulation=self.accumulation,
            among=among,
        )


@dataclass(frozen=True)
class LossSettings:
    """The run's loss functions."""

    objective: Objective
    temperature: float
    routed: bool
    """Whether each stream is divided by the tokens it has weight on, instead of all tokens."""

    def counted(self, mask: Tensor, weight: Tensor) -> Tensor:
        """(B,T) bool: the tokens whose number divides a stream with this weight."""
        return weight > 0 if self.routed else mask


def two_stream_loss(
    hidden: Tensor,
    head: Head,
    batch: GenerationBatch,
    teacher: TeacherValues | None,
    signals: LocalSignals | Decide,
    settings: LossSettings,
    averaging: Averaging,
) -> tuple[Tensor, TokenScores]:
    """sum w_RL·PG/N_RL + sum w_SD·D/N_SD of one micro-batch, and its scores without gradient.

    Args:
        hidden: (B,T,H) the student's states that predict the completion tokens; gradient flows to them and to ``head``.
        teacher: ``None`` where no rollout of the micro-batch has one.
        signals: decided already, or a function of the scores that is called once with all of them.
    """
    tokens = batch.tokens

    def streams(decided: LocalSignals) -> Streams:
        rl_weight, sd_weight = (
            weight * averaging.weights(settings.counted(tokens.mask, weight), count)
            for weight, count in (
                (decided.rl_weight, decided.rl_count),
                (decided.sd_weight, decided.sd_count),
            )
        )
        if tokens.sampler_ratio is not None:
            rl_weight = rl_weight * tokens.sampler_ratio
            # A token's divergence depends on its state alone, which the token's own ratio says nothing about.
            if tokens.sampler_ratio.shape != tokens.mask.shape:
                sd_weight = sd_weight * tokens.sampler_ratio
        return Streams(decided.advantage, rl_weight, None if teacher is None else sd_weight)

    states = None
    if teacher is not None and teacher.hidden is not None and teacher.head is not None:
        states = ModelStates(teacher.hidden, teacher.head)
    return fused_loss(
        ModelStates(hidden, head),
        states,
        tokens.completion_ids,
        (lambda scores: streams(signals(scores))) if callable(signals) else streams(signals),
        mask=tokens.mask,
        teacher_mask=None if teacher is None else teacher.mask,
        sparse=None if teacher is None else teacher.sparse,
        old_logp=tokens.old_logp,
        objective=settings.objective,
        temperature=settings.temperature,
    )
