"""What a method is: a decision, not a trainer.

The trainer computes ``loss = sum_t w_RL * PG(A_t) / N_RL + sum_t w_SD * D_t / N_SD`` and knows no method by name. A method
decides which feedback each rollout's teacher sees (``context``), and from the scores of the whole generation batch the
advantages and the two weight streams (``signals``). Its settings are its dataclass fields; their defaults are a paper's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.contexts import SOURCES
from errata.contexts import choose as choose_context
from errata.experience import Experience, FeedbackHistory
from errata.ops.scores import TokenScores
from errata.records import Group, Rollout, TeacherContext

TEACHERS = ("live", "frozen", "ema", "sync", "trust_region")
"""The policy as its own teacher (``errata.experts.SelfTeacher``)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything known about one generation batch of B rollouts of at most T tokens, over all processes."""

    mask: Tensor
    """(B,T) bool: tokens the student generated (no prompt, no padding, no tool output)."""
    scores: TokenScores | None
    """(B,T) each, no gradient; ``None`` where the method reads none. Teacher fields are 0 without a teacher. Fields that the
    method does not name in ``reads`` may be ``None`` or wrong, and so is every field where ``reads_at`` is False."""
    reward: Tensor
    """(B,), NaN where the verifier failed."""
    advantage: Tensor
    """(B,) reward less its group's mean, scaled as TRL's ``scale_rewards`` says; 0 where the reward is NaN."""
    group: Tensor
    """(B,) int: which rollouts answered the same prompt."""
    has_teacher: Tensor
    """(B,) bool: a teacher that was shown something the student was not has marked this rollout."""
    available: Tensor
    """(B,) bool: such a teacher could be had, whether or not the method wanted its marks."""
    success: Tensor
    """(B,) bool: reward reached the method's threshold."""
    pass_rate: Tensor
    """(B,) the ledger's smoothed pass rate of the rollout's problem, this batch included; 0.5 without a ledger."""
    stage: int = 1
    """The curriculum's stage; 1 without one."""
    asked: Tensor | None = None
    """(B,T) what each mark counts for in sums over a rollout's tokens, where an expert was asked at some states alone: 0 at
    the others. ``None``: every token of a rollout with a teacher was marked."""

    @property
    def taught(self) -> Tensor:
        """(B,T) bool: tokens of rollouts that a teacher marked."""
        return self.mask & self.has_teacher[:, None]

    @property
    def marks(self) -> Tensor:
        """(B,T) what each token's mark counts for: 1 where a teacher marked it, else 0; see ``asked``."""
        return self.taught.float() if self.asked is None else self.asked * self.taught

    @property
    def judged(self) -> Tensor:
        """(B,) bool: the verifier gave a reward."""
        return ~self.reward.isnan()


@dataclass(frozen=True, slots=True)
class Signals:
    """What a method decided for one batch: everything the loss needs besides the scores. All (B,T), no gradient."""

    advantage: Tensor
    """A_t of the policy-gradient stream."""
    rl_weight: Tensor
    """w_RL >= 0 of the policy-gradient stream."""
    sd_weight: Tensor
    """w_SD >= 0 of the distillation stream."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further per-token values for the run directory, (B,T): ``{"future_credit": ...}``."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers for this step's log: ``{"routing/hard": 0.4}``."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Subclasses set the class variables, add fields and implement ``signals``."""

    idea: ClassVar[str] = ""
    """One line for ``errata methods``."""
    paper: ClassVar[str] = ""
    """Where it comes from, e.g. ``arXiv 2402.03300``."""
    needs: ClassVar[str] = ""
    """What feedback it needs, in words."""
    uses_teacher: ClassVar[bool] = True
    """Whether any rollout is ever shown to a teacher."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Which fields of ``batch.scores`` ``signals`` reads (a batch is scored for them before its loss): ``teacher_entropy``
    alone costs least, ``divergence`` most."""
    looks_ahead: ClassVar[bool] = False
    """Whether what ``signals`` gives a token depends on the scores of that token and of *later* ones alone, in whatever
    rollout. Then one walk from the rollouts' ends both scores and learns, where a batch is in one piece."""

    success_threshold: float = 1.0
    """Reward from which an attempt counts as solved (SDPO's and DRIFT's released code: 1)."""
    sources: tuple[str, ...] = ("sibling", "feedback")
    """What a teacher may be shown, best first: sibling, buffer, feedback, reference; ``expert`` is an expert that knows better
    by itself and is shown nothing."""
    with_feedback: bool = False
    """Show the feedback also beside a solution."""
    allow_leaks: bool = True
    """Whether feedback that contains the answer may be shown."""
    demonstrations: int = 1
    """How many different successes (siblings or stored ones) are shown at most, best first."""
    history: int = 0
    """How many earlier failed attempts at the same problem are shown beside feedback, with the feedback they got."""
    keep_thinking: bool = False
    """Show successes and attempts with their thinking (SDPO's and DRIFT's released code: stripped)."""

    divergence: str = "forward_ce"
    """D: forward_ce, forward_kl, reverse_kl or js."""
    alpha: float = 0.5
    """Mixture of ``js``."""
    support: str = "full"
    """full, student_topk (plus a tail bucket) or teacher_topk (renormalised)."""
    top_k: int | None = None
    """Size of a top-k support."""
    token_clip: float | None = None
    """Largest divergence of one token; its gradient is zero above (OPSD: 0.05)."""
    importance_clip: float | None = 2.0
    """Distillation is multiplied by sg min(rho, this) (SDPO's and DistIL's released code: 2); ``None``: not at all."""
    surrogate: str = "clipped"
    """clipped: GRPO's surrogate, TRL's ``epsilon`` and ``epsilon_high``. importance: sg min(rho, importance_clip) * A * logp."""
    denominators: str = "shared"
    """shared: both streams are divided by all valid tokens. routed: each by the tokens it has weight on."""

    teacher: str = "ema"
    """live, frozen, ema, sync or trust_region, unless the recipe says otherwise."""
    teacher_rate: float = 0.05
    """EMA rate per optimizer step."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        _one_of("divergence", self.divergence, ("forward_ce", "forward_kl", "reverse_kl", "js"))
        _one_of("support", self.support, ("full", "student_topk", "teacher_topk"))
        _one_of("surrogate", self.surrogate, ("clipped", "importance"))
        _one_of("denominators", self.denominators, ("shared", "routed"))
        _one_of("teacher", self.teacher, TEACHERS)
        for name in self.reads:
            _one_of(f"{type(self).__name__}.reads", name, TokenScores._fields)
        for name, least in (("demonstrations", 1), ("history", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}")
        if self.support != "full" and (self.top_k is None or self.top_k < 1):
            raise ValueError(f"top_k: support {self.support!r} needs a number of tokens, got {self.top_k}")
        if not 0 <= self.teacher_rate <= 1:
            raise ValueError(f"teacher_rate: {self.teacher_rate} is not in [0, 1]")
        unknown = set(self.sources) - set(SOURCES)
        if unknown:
            raise ValueError(f"sources: {sorted(unknown)[0]!r} is none of {', '.join(SOURCES)}")

    def experience(self) -> Experience:
        """State this method keeps across steps, fresh; one of your own ends with ``history=self.remembered()``."""
        return Experience(history=self.remembered())

    def remembered(self) -> FeedbackHistory | None:
        """The feedback history that ``history`` asks for, fresh.

        It holds twice what is shown: copies of the rollout's own attempt, and leaks where they are forbidden, are passed over.
        """
        if not (self.history and self.uses_teacher):
            return None
        return FeedbackHistory(2 * self.history, keep_thinking=self.keep_thinking)

    def needs_entropy(self, stage: int) -> bool:
        """Whether ``context`` reads ``Rollout.entropy`` (then the student is scored before contexts are chosen)."""
        return False

    def context(
        self, rollout: Rollout, group: Group, *, experience: Experience, epoch: float, rng: random.Random
    ) -> TeacherContext:
        """What this rollout's teacher is shown. Called for all rollouts of all processes in one fixed order.

        ``experience`` already knows this batch's results; ``epoch`` counts passes over the data so far.
        """
        if not self.uses_teacher or rollout.reward is None:
            return TeacherContext("none", "not judged" if rollout.reward is None else "this method has no teacher")
        return self.choose(rollout, group, experience)

    def choose(self, rollout: Rollout, group: Group, experience: Experience, **decided: Any) -> TeacherContext:
        """``errata.contexts.choose`` as this method's settings say; ``decided`` are its further arguments.

        Raises ``ValueError`` where ``history`` asks for what an ``experience`` of one's own does not keep.
        """
        history = experience.history
        if self.history and history is None:
            kind = type(self).__name__
            raise ValueError(
                f"history: {kind}.experience() keeps none; end its Experience with history=self.remembered()"
            )
        return choose_context(
            rollout,
            group,
            sources=self.sources,
            threshold=self.success_threshold,
            demonstrations=self.demonstrations,
            with_feedback=self.with_feedback,
            earlier=() if history is None else history.earlier(group.problem_id),
            history=self.history,
            allow_leaks=self.allow_leaks,
            keep_thinking=self.keep_thinking,
            **decided,
        )

    def reads_at(self, batch: Batch) -> Tensor:
        """(B,T) bool: the tokens whose scores ``signals`` will read, given all but those. Fewer cost less."""
        return batch.mask

    def signals(self, batch: Batch) -> Signals:
        raise NotImplementedError

    def least_answer(self) -> tuple[str, str]:
        """The least an expert must give (``samples``, ``topk`` or ``full``, see ``errata.experts``), and why not less."""
        if self.support == "student_topk":
            return "full", "support: student_topk asks for its probabilities of the tokens the student likes best"
        if self.divergence != "forward_ce":
            return "topk", f"divergence: {self.divergence} compares with its probabilities"
        return "samples", ""

    def settings(self) -> dict[str, Any]:
        """The method's fields as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}: {value!r} is none of {', '.join(allowed)}")


def zeros(batch: Batch) -> Tensor:
    """(B,T) float32 zeros."""
    return torch.zeros(batch.mask.shape, dtype=torch.float32, device=batch.mask.device)


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean of (B,T) ``values`` where ``mask``; 0 where nothing is."""
    count = mask.sum()
    return float((values * mask).sum() / count) if count else 0.0
