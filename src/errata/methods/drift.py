"""DRIFT: which signal to apply is decided problem by problem (difficulty) and token by token (rhythm)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from errata.experience import Curriculum, Experience, Memory, PassRateLedger, SuccessBuffer
from errata.experience._check import finite
from errata.methods.base import Batch, Signals, TeacherMethod, masked_mean, one_of, zeros
from errata.ops.rhythm import rhythm
from errata.ops.routing import Difficulty, difficulty_bins, difficulty_gates, paper_weights, released_weights
from errata.ops.scores import TokenScores
from errata.records import Group, Rollout, TeacherContext
from errata.validate import Count, NonNegative, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class DRIFT(TeacherMethod):
    """Two stages (arXiv 2606.30345). Defaults are the released code's where it differs from the paper, but for ``denominators``.

    Stage 1 distils every rollout from a *diverse* success (highest mean entropy). Stage 2 routes: wrong attempts are
    distilled, right ones reinforced with weight gamma_i * M_t, by how hard the problem is and where the student runs ahead
    of its teacher at an anchor of the derivation.
    """

    idea: ClassVar[str] = (
        "route each problem by difficulty and each token by rhythm between reward and self-distillation"
    )
    paper: ClassVar[str] = "arXiv 2606.30345"
    needs: ClassVar[str] = "a score, and successful siblings; feedback where there is none"
    score_fields: ClassVar[tuple[str, ...]] = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy")

    sources: tuple[str, ...] = ("sibling", "buffer", "feedback")
    divergence: str = "js"
    denominators: str = "shared"
    """As SRPO's, on which DRIFT builds. ``routed`` would let the few right attempts of a hard task outweigh all that is
    distilled (LOG.md)."""

    routing: str = "released"
    """released: soft gates of the decayed pass rate. paper: bins at 0.2 and 0.8. none: every problem counts as medium."""
    binary_routing: bool = True
    """False: right attempts at hard problems are distilled too, with weight 0.7 * hard (released code)."""
    decay_per: Literal["step", "visit"] = "visit"
    """Of the released ledger: step (as released) or visit, which remembers a problem that recurs once an epoch and puts it
    in the right bin more often (benchmarks/ledger_decay.py)."""
    ledger_reset_every: Count | None = None
    """Forget all pass rates every so many steps after warm-up and transition; ``None``: never."""
    transition_steps: Whole = 0
    """Steps between warm-up and the first from which ledger_reset_every counts (released: sample_routing_transition_steps)."""

    rhythm: bool = True
    """False: M_t = 1."""
    margin: NonNegative = 0.2
    tau: Positive = 1.0
    max_bonus: NonNegative = 2.0
    window: Count = 8
    """W; with anchor_scale, mix, floor and ceiling not published: our defaults."""
    anchor_scale: NonNegative = 1.0
    mix: NonNegative = 1.0
    floor: NonNegative = 0.5
    ceiling: NonNegative = 2.0
    gate_floor: float = 0.0
    """The gate of an anchor becomes gate_floor + (1 - gate_floor) * gate ** gate_power (released code)."""
    gate_power: Positive = 1.0
    bonus_hard: NonNegative = 0.0
    """Weight of the rhythm bonus at hard problems; beta_i is the sum of the three gates times their weights (released: the
    medium one alone)."""
    bonus_medium: NonNegative = 1.0
    bonus_easy: NonNegative = 0.0

    buffer: str = "released"
    """released, paper or none."""
    buffer_fallback: str = "rollout"
    """rollout: any attempt without a successful sibling may draw. group: only if its group has no success (paper)."""
    buffer_min_reward: float | None = None
    """Reward from which a rollout is stored; ``None``: success_threshold."""
    buffer_start_step: Whole = 0
    """Nothing is drawn before step max(buffer_start_step, buffer_start_epoch * steps of an epoch)."""
    buffer_start_epoch: float | None = None
    """``None``: 0 of the released buffer, 1 of the paper's."""
    prefer_recent: bool = False
    """released: rank stored successes by step before reward. paper: let a newer success replace an equal one, which 0/1 rewards
    would otherwise freeze out."""

    warmup_steps: Whole | None = 60
    """Steps of stage 1 (the paper's is about 60); 0: none; ``None``: until the running pass rate is on a plateau."""
    tasks: tuple[str, ...] = ()
    """Tasks or environments that have a stage each; none: one stage for all. A recipe's several tasks are named here by itself.
    A task's warm-up counts the steps that hold it, and its plateau is that of its own pass rate."""
    reward_band: NonNegative = 0.0
    """delta: warm-up teachers have reward within this of the best sibling's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(self.tasks))
        one_of("routing", self.routing, ("released", "paper", "none"))
        one_of("buffer", self.buffer, ("released", "paper", "none"))
        one_of("buffer_fallback", self.buffer_fallback, ("rollout", "group"))
        if self.floor > self.ceiling:
            raise ValueError(f"floor: must be at most ceiling ({self.ceiling:g}), got {self.floor:g}")
        finite("gate_floor", self.gate_floor, low=0.0, high=1.0)
        if self.buffer_start_epoch is not None:
            finite("buffer_start_epoch", self.buffer_start_epoch, low=0.0)

    def memory(self) -> Experience:
        ledger = PassRateLedger("paper" if self.routing == "paper" else "released", decay_per=self.decay_per)
        buffer = None
        if self.buffer != "none":
            buffer = SuccessBuffer(
                kind="paper" if self.buffer == "paper" else "released",
                prefer_recent=self.prefer_recent,
                keep_thinking=self.keep_thinking,
                start_epoch=self.buffer_start_epoch,
                start_step=self.buffer_start_step,
                min_reward=self.buffer_min_reward,
            )
        curriculum = Curriculum(
            switch_step=self.warmup_steps, reset_every=self.ledger_reset_every, reset_after=self.transition_steps
        )
        return Experience(ledger, buffer, curriculum, self.feedback_history(), self.success_threshold, self.tasks)

    def needs_entropy(self, memory: Memory) -> bool:
        return _experience(memory).stage == 1

    def context(
        self, rollout: Rollout, group: Group, *, memory: Memory, epoch: float, rng: random.Random
    ) -> TeacherContext:
        if rollout.reward is None:
            return TeacherContext("none", "not judged")
        experience = _experience(memory)
        stored: list[str] = []
        if experience.buffer is not None:
            alone = not group.successes(self.success_threshold)
            if alone or (
                self.buffer_fallback == "rollout" and not group.successes(self.success_threshold, other_than=rollout)
            ):
                stored = experience.buffer.draw_several(
                    group.problem_id,
                    self.demonstrations,
                    rng,
                    exclude={rollout.completion},
                    epoch=epoch,
                    step=experience.step,
                )
        stage = experience.stage_of(rollout.row)
        pick = self._most_diverse if stage == 1 else _best_then_shortest
        context = self.choose(rollout, group, experience, pick=pick, stored=stored)
        reinforced = stage == 2 and rollout.solved(self.success_threshold)
        if reinforced and context.is_informative and not self._scores_correct(experience.rate(group.problem_id)):
            # Correct rollouts are reinforced; their teacher's scores are read by the rhythm gate alone.
            context = replace(context, use_teacher=False, why=context.why + "; its scores are not used")
        return context

    def _scores_correct(self, pass_rate: float) -> bool:
        """Whether the teacher's scores of correct rollouts matter at a problem of this pass rate."""
        difficulty = self._difficulty(torch.tensor([pass_rate]))
        gated = self.rhythm and float(self._beta(difficulty)) > 1e-3
        return gated or (not self.binary_routing and float(difficulty.hard) > 1e-3)

    def _most_diverse(self, successes: list[Rollout]) -> Rollout:
        best = max(r.reward or 0.0 for r in successes)
        return max(
            (r for r in successes if (r.reward or 0.0) >= best - self.reward_band),
            key=lambda r: (r.entropy or 0.0, -r.index),
        )

    def _difficulty(self, pass_rate: Tensor) -> Difficulty:
        if self.routing == "none":
            none, all_of_it = torch.zeros_like(pass_rate), torch.ones_like(pass_rate)
            return Difficulty(hard=none, medium=all_of_it, easy=none)
        return difficulty_bins(pass_rate) if self.routing == "paper" else difficulty_gates(pass_rate)

    def _beta(self, difficulty: Difficulty) -> Tensor:
        """(B,) beta_i, the weight of the rhythm bonus."""
        hard, medium, easy = difficulty
        return self.bonus_hard * hard + self.bonus_medium * medium + self.bonus_easy * easy

    def score_mask(self, batch: Batch) -> Tensor:
        if not self.rhythm:
            return torch.zeros_like(batch.mask)
        return batch.teacher_mask & (batch.success & batch.judged & ~_warming_up(batch))[:, None]

    def signals(self, batch: Batch) -> Signals:
        experience = _experience(batch.memory)
        rates = [experience.rate(r.problem_id) for r in batch.rollouts]
        pass_rate = torch.tensor(rates, device=batch.mask.device)
        warming_up = _warming_up(batch)
        if warming_up.all():
            stage = {"curriculum/stage": experience.mean_stage}
            return Signals(
                zeros(batch),
                zeros(batch),
                batch.teacher_weight,
                per_rollout={"pass_rate": pass_rate},
                metrics=stage,
            )
        mask = batch.mask.float()
        difficulty = self._difficulty(pass_rate)
        # A teacher whose scores are not used was not run; one whose context was dropped, or that did not answer, is none.
        unused = torch.tensor([not c.use_teacher for c in batch.contexts], device=batch.mask.device)
        with_teacher = batch.has_teacher | (batch.has_context & unused)
        if self.routing == "released":
            branch = released_weights(difficulty, batch.success, with_teacher, distil_correct=not self.binary_routing)
        else:
            branch = paper_weights(difficulty, batch.success, with_teacher)
        # One that was not judged has no reward.
        rl, sd = branch.rl * batch.judged, branch.sd * (batch.judged & batch.has_teacher)
        # Of a task in its warm-up every rollout is distilled.
        rl, sd = rl.masked_fill(warming_up, 0.0), sd.masked_fill(warming_up, 1.0)

        correct = batch.mask & (batch.success & batch.judged & ~warming_up)[:, None]
        pace, gate = mask, zeros(batch)
        gated = self.score_mask(batch)
        if gated.any():
            s = batch.scores
            found = rhythm(
                TokenScores(s.student_logp, s.teacher_logp, s.student_entropy, s.teacher_entropy, None),
                gated,
                self._beta(difficulty),
                margin=self.margin,
                tau=self.tau,
                max_bonus=self.max_bonus,
                window=self.window,
                anchor_scale=self.anchor_scale,
                mix=self.mix,
                floor=self.floor,
                ceiling=self.ceiling,
                gate_floor=self.gate_floor,
                gate_power=self.gate_power,
            )
            pace, gate = torch.where(gated, found.weights, mask), found.gate
        rl_weight, sd_weight = rl[:, None] * pace * mask, sd[:, None] * batch.teacher_weight
        return Signals(
            advantage=batch.advantage[:, None] * mask,
            rl_weight=rl_weight,
            sd_weight=sd_weight,
            per_token={"rhythm": pace, "rhythm_gate": gate},
            per_rollout={"pass_rate": pass_rate},
            metrics={
                "curriculum/stage": experience.mean_stage,
                "routing/hard": float(difficulty.hard.mean()),
                "routing/medium": float(difficulty.medium.mean()),
                "routing/easy": float(difficulty.easy.mean()),
                "routing/weight_rl": masked_mean(rl_weight, batch.mask),
                "routing/weight_sd": masked_mean(sd_weight, batch.mask),
                "routing/reinforced": float((rl > 0).float().mean()),
                "routing/distilled": float((sd > 0).float().mean()),
                "rhythm/open": masked_mean((gate > 0).float(), correct) if self.rhythm else 0.0,
                "rhythm/bonus": masked_mean(pace - 1, correct),
            },
        )


def _experience(memory: Memory) -> Experience:
    if not isinstance(memory, Experience):
        raise TypeError(f"memory: DRIFT needs an Experience, got {type(memory).__name__}; return one from memory()")
    return memory


def _warming_up(batch: Batch) -> Tensor:
    """(B,) whether a rollout's task is in stage 1."""
    experience = _experience(batch.memory)
    return torch.tensor([experience.stage_of(r.row) == 1 for r in batch.rollouts], device=batch.mask.device)


def _best_then_shortest(successes: list[Rollout]) -> Rollout:
    return min(successes, key=lambda r: (-(r.reward or 0.0), r.length, r.index))
