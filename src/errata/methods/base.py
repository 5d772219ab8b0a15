"""What a method is: a decision, not a trainer.

The trainer computes ``loss = sum_t w_RL * PG(A_t) / N_RL + sum_t w_SD * D_t / N_SD`` and knows no method by name. A method
decides which feedback each rollout's teacher sees (``context``), and from the scores of the whole generation batch the
advantages and the two weight streams (``signals``). Its settings are its dataclass fields; their defaults are a paper's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.contexts import SOURCES, Source
from errata.contexts import choose as choose_context
from errata.experience import Experience, FeedbackHistory, Memory
from errata.ops.divergence import check_entry_clip
from errata.ops.scores import DivergenceSettings, Objective, TokenScores
from errata.records import Group, Rollout, TeacherContext
from errata.validate import Count, Positive, Share, TopK, Whole, check_settings

TEACHERS = ("live", "frozen", "ema", "sync", "trust_region")
"""Kinds of the policy as its own teacher (``errata.experts.SelfTeacher``)."""


class Scores:
    """The per-token scores that a method declares in ``score_fields``, each (B,T) without gradient.

    A value is NaN where it was not computed: at tokens outside ``score_mask``, and for the teacher's fields at tokens
    without a teacher. It is 0 outside the batch's mask.
    """

    def __init__(self, scores: TokenScores, fields_: Sequence[str], reader: str) -> None:
        """``reader`` is the method's name, for errors."""
        self._scores, self._fields, self._reader = scores, tuple(fields_), reader

    def _get(self, name: str) -> Tensor:
        if name not in self._fields:
            raise ValueError(
                f"score_fields: {self._reader}.signals reads {name!r}, which it does not declare; "
                f"set score_fields = {(*self._fields, name)}"
            )
        value: Tensor | None = getattr(self._scores, name)
        if value is None:  # no rollout of this batch has a teacher
            return torch.full_like(self._scores.student_logp, torch.nan)
        return value

    @property
    def student_logp(self) -> Tensor:
        """Log-probability of the sampled token under the student."""
        return self._get("student_logp")

    @property
    def teacher_logp(self) -> Tensor:
        """Log-probability of the sampled token under the teacher."""
        return self._get("teacher_logp")

    @property
    def student_entropy(self) -> Tensor:
        """Entropy of the student's next-token distribution, in nats."""
        return self._get("student_entropy")

    @property
    def teacher_entropy(self) -> Tensor:
        """Entropy of the teacher's next-token distribution, in nats."""
        return self._get("teacher_entropy")

    @property
    def divergence(self) -> Tensor:
        """The method's divergence between teacher and student."""
        return self._get("divergence")


@dataclass(frozen=True, slots=True)
class Batch:
    """One generation batch of B rollouts of at most T tokens, over all processes."""

    rollouts: Sequence[Rollout]
    """B rollouts with their verdicts, in the order of the tensors' rows."""
    contexts: Sequence[TeacherContext]
    """What each rollout's teacher is shown."""
    memory: Memory
    """What this method keeps across steps; it has already observed this batch."""
    mask: Tensor
    """(B,T) bool: tokens the student generated (no prompt, no padding, no tool output)."""
    reward: Tensor
    """(B,), NaN where the rollout was not judged."""
    advantage: Tensor
    """(B,) reward less its group's mean, scaled as TRL's ``scale_rewards`` says; 0 where the reward is NaN."""
    group: Tensor
    """(B,) int: which rollouts answer the same prompt."""
    has_teacher: Tensor
    """(B,) bool: a teacher that was shown something the student was not has scored this rollout."""
    has_context: Tensor
    """(B,) bool: this rollout has an informative context, whether or not the method uses its teacher."""
    success: Tensor
    """(B,) bool: the reward reaches the method's ``success_threshold``."""
    scores: Scores
    """Per-token scores; reading one that the method does not declare raises ``ValueError``."""
    query_weight: Tensor | None = None
    """(B,T) what each teacher value counts for in sums over a rollout's tokens, where an expert was queried at some states
    only: 0 at the others. ``None``: every token of a rollout with a teacher has one."""
    sampler_ratio: Tensor | None = None
    """Probability under the policy divided by that under the engine that sampled (vLLM), where TRL corrects for it: (B,1) of
    each rollout, or (B,T) of each token. The loss multiplies by it; a method needs it only for sums over later tokens or
    other rollouts. ``None``: the policy itself sampled."""

    @property
    def token_ratio(self) -> Tensor | None:
        """(B,T) ``sampler_ratio`` where it is of tokens."""
        ratio = self.sampler_ratio
        return None if ratio is None or ratio.shape != self.mask.shape else ratio

    @property
    def rollout_ratio(self) -> Tensor | None:
        """(B,) ``sampler_ratio`` where it is of rollouts."""
        ratio = self.sampler_ratio
        return None if ratio is None or ratio.shape == self.mask.shape else ratio[:, 0]

    @property
    def teacher_mask(self) -> Tensor:
        """(B,T) bool: generated tokens of rollouts with a teacher."""
        return self.mask & self.has_teacher[:, None]

    @property
    def teacher_weight(self) -> Tensor:
        """(B,T) what each token's teacher value counts for: 1 where there is a teacher, else 0; see ``query_weight``."""
        return self.teacher_mask.float() if self.query_weight is None else self.query_weight * self.teacher_mask

    @property
    def judged(self) -> Tensor:
        """(B,) bool: the rollout has a reward."""
        return ~self.reward.isnan()


@dataclass(frozen=True, slots=True)
class Signals:
    """What a method decides for one batch: all that the loss needs besides the scores. No gradient flows through it."""

    advantage: Tensor
    """(B,T) A_t of the policy-gradient stream."""
    rl_weight: Tensor
    """(B,T) w_RL >= 0 of the policy-gradient stream."""
    sd_weight: Tensor
    """(B,T) w_SD >= 0 of the distillation stream."""
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    """Further (B,T) values for ``rollouts.jsonl``: ``{"future_credit": ...}``."""
    per_rollout: Mapping[str, Tensor] = field(default_factory=dict)
    """Further (B,) values for ``rollouts.jsonl``: ``{"pass_rate": ...}``."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers for this step's log: ``{"routing/hard": 0.4}``."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: learning from rewards. Subclasses set the class variables, add fields, implement ``signals``."""

    idea: ClassVar[str] = ""
    """One line for ``errata methods``."""
    paper: ClassVar[str] = ""
    """Where it comes from, e.g. ``arXiv 2402.03300``."""
    needs: ClassVar[str] = ""
    """What feedback it needs, in words."""
    uses_teacher: ClassVar[bool] = False
    """Whether rollouts are scored by a teacher: true for every ``TeacherMethod``."""
    learns_from: ClassVar[Literal["rollouts", "reference"]] = "rollouts"
    """``rollouts`` that the student samples, or each row's ``reference``, which then stands where a completion would."""
    trl_loss: ClassVar[bool] = False
    """Whether TRL's own loss, with all its options, is this method's: GRPO's alone."""
    score_fields: ClassVar[tuple[str, ...]] = ()
    """Which fields of ``batch.scores`` ``signals`` reads: ``teacher_entropy`` alone costs least, ``divergence`` most."""

    success_threshold: float = 1.0
    """Reward from which a rollout counts as solved (released code of SDPO and DRIFT: 1)."""

    def __post_init__(self) -> None:
        check_settings(type(self), self.settings())
        for name in self.score_fields:
            one_of(f"{type(self).__name__}.score_fields", name, TokenScores._fields)

    def memory(self) -> Memory:
        """What this method keeps across steps, new and empty."""
        return Experience(threshold=self.success_threshold)

    def needs_entropy(self, memory: Memory) -> bool:
        """Whether ``context`` reads ``Rollout.entropy`` (then the student is scored before contexts are chosen)."""
        return False

    def context(
        self, rollout: Rollout, group: Group, *, memory: Memory, epoch: float, rng: random.Random
    ) -> TeacherContext:
        """What this rollout's teacher is shown. Called for all rollouts of all processes in one fixed order.

        ``memory`` has already observed this batch; ``epoch`` counts passes over the data so far.
        """
        return TeacherContext("none", "this method has no teacher")

    def score_mask(self, batch: Batch) -> Tensor:
        """(B,T) bool: the tokens whose scores ``signals`` reads, given everything else of the batch. Fewer cost less."""
        return batch.mask

    def signals(self, batch: Batch) -> Signals:
        """The advantages and weights of every token."""
        raise NotImplementedError

    def objective(self) -> Objective:
        """The two streams' loss functions, without TRL's own settings (``epsilon``)."""
        return Objective()

    def settings(self) -> dict[str, Any]:
        """The method's fields as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TeacherMethod(Method):
    """Base of the methods whose rollouts are scored by a teacher that was shown feedback."""

    uses_teacher: ClassVar[bool] = True
    own_sources: ClassVar[Mapping[str, Source]] = {}
    """Further sources of contexts by name: functions (rollout, group) -> ``TeacherContext`` or ``None``."""

    sources: tuple[str, ...] = ("sibling", "feedback")
    """What a teacher may be shown, best first: sibling, buffer, feedback, hindsight (at each turn what followed it),
    reference, or one of ``own_sources``; ``expert`` is another model that is shown nothing."""
    with_feedback: bool = False
    """Show the feedback also beside a solution."""
    allow_leaks: bool = True
    """Whether feedback that contains the answer may be shown."""
    demonstrations: Count = 1
    """How many different successes (siblings or stored ones) are shown at most, best first."""
    history: Whole = 0
    """How many earlier failed attempts at the same problem are shown beside feedback, with the feedback they got."""
    keep_thinking: bool = False
    """Show successes and attempts with their thinking (released code of SDPO and DRIFT: stripped)."""

    divergence: str = "forward_ce"
    """D: forward_ce, forward_kl, reverse_kl or js."""
    alpha: Share = 0.5
    """Mixture of ``js``."""
    support: str = "full"
    """full, student_topk (plus a tail bucket) or teacher_topk (renormalised)."""
    top_k: TopK | None = None
    """Size of a top-k support."""
    token_clip: Positive | None = None
    """Largest divergence of one token; its gradient is zero above."""
    entry_clip: Positive | None = None
    """Largest term of one (token, vocabulary entry) pair in the divergence, before the sum (arXiv 2601.18734, released)."""
    importance_clip: Positive | None = 2.0
    """Distillation is multiplied by sg min(rho, this) (released code of SDPO and DistIL: 2); ``None``: not at all."""
    surrogate: str = "clipped"
    """clipped: GRPO's surrogate, TRL's ``epsilon`` and ``epsilon_high``. importance: sg min(rho, importance_clip) * A * logp."""
    denominators: str = "shared"
    """shared: both streams are divided by all valid tokens. routed: each by the tokens it has weight on."""

    teacher: str = "ema"
    """live, frozen, ema, sync or trust_region, unless the recipe says otherwise."""
    teacher_rate: Share = 0.05
    """EMA rate per optimizer step."""
    context_template: str = "sdpo"
    """Wording of the teacher's prompt, unless the recipe says otherwise."""
    teacher_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template in the teacher's prompts, over the run's chat_template_kwargs: {enable_thinking: true}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sources", tuple(self.sources))
        if not isinstance(self.teacher_chat_template_kwargs, Mapping):
            raise ValueError(
                "teacher_chat_template_kwargs: must be a mapping such as {enable_thinking: true}, "
                f"got {self.teacher_chat_template_kwargs!r}"
            )
        check_entry_clip(self.entry_clip, self.divergence)
        one_of("divergence", self.divergence, ("forward_ce", "forward_kl", "reverse_kl", "js"))
        one_of("support", self.support, ("full", "student_topk", "teacher_topk"))
        one_of("surrogate", self.surrogate, ("clipped", "importance"))
        one_of("denominators", self.denominators, ("shared", "routed"))
        one_of("teacher", self.teacher, TEACHERS)
        if self.support != "full" and self.top_k is None:
            raise ValueError(f"top_k: support {self.support!r} needs a number of tokens, got null")
        if not self.sources:
            raise ValueError("sources: empty; name what the teacher may be shown, or use method: grpo")
        known = (*SOURCES, *self.own_sources)
        for name in self.sources:
            one_of("sources", name, known)

    def memory(self) -> Memory:
        """A fresh ``Experience`` with the feedback history that ``history`` asks for."""
        return Experience(history=self.feedback_history(), threshold=self.success_threshold)

    def feedback_history(self) -> FeedbackHistory | None:
        """The store that the setting ``history`` asks for, new and empty; a memory of your own takes it as ``history``.

        It holds twice what is shown, because copies of the rollout's own attempt, and leaks where they are forbidden, are
        skipped.
        """
        return FeedbackHistory(2 * self.history, keep_thinking=self.keep_thinking) if self.history else None

    def context(
        self, rollout: Rollout, group: Group, *, memory: Memory, epoch: float, rng: random.Random
    ) -> TeacherContext:
        if rollout.reward is None:
            return TeacherContext("none", "not judged")
        return self.choose(rollout, group, memory)

    def choose(self, rollout: Rollout, group: Group, memory: Memory, **options: Any) -> TeacherContext:
        """``errata.contexts.choose`` with this method's settings; ``options`` are its further arguments.

        Raises ``ValueError`` where ``history`` is set and ``memory`` keeps none.
        """
        store = getattr(memory, "history", None)
        if self.history and not isinstance(store, FeedbackHistory):
            kind = type(self).__name__
            raise ValueError(
                f"history: {kind}.memory() keeps none; give it an attribute history = self.feedback_history()"
            )
        return choose_context(
            rollout,
            group,
            sources=self.sources,
            threshold=self.success_threshold,
            demonstrations=self.demonstrations,
            with_feedback=self.with_feedback,
            earlier=store.earlier(group.problem_id) if isinstance(store, FeedbackHistory) else (),
            history=self.history,
            allow_leaks=self.allow_leaks,
            keep_thinking=self.keep_thinking,
            own_sources=self.own_sources,
            **options,
        )

    def objective(self) -> Objective:
        return Objective(
            DivergenceSettings(self.divergence, self.alpha, self.support, self.top_k or 1, entry_clip=self.entry_clip),
            surrogate=self.surrogate,
            importance_clip=self.importance_clip,
            token_clip=self.token_clip,
        )

    def minimum_access(self) -> tuple[str, str]:
        """The least an expert must give (``samples``, ``topk`` or ``full``, see ``errata.experts``), and why not less."""
        if self.support == "student_topk":
            return "full", "support: student_topk asks for its probabilities of the tokens the student likes best"
        if self.divergence != "forward_ce":
            return "topk", f"divergence: {self.divergence} compares with its probabilities"
        return "samples", ""


def one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ``ValueError`` naming ``argument`` and the choices unless ``value`` is among them."""
    if value not in allowed:
        raise ValueError(f"{argument}: {value!r} is none of {', '.join(allowed)}")


def zeros(batch: Batch) -> Tensor:
    """(B,T) float32 zeros."""
    return torch.zeros(batch.mask.shape, dtype=torch.float32, device=batch.mask.device)


def where(mask: Tensor, values: Tensor) -> Tensor:
    """``values`` where ``mask``, else 0, also over NaN."""
    return torch.where(mask.bool(), values, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean of (B,T) ``values`` where ``mask``; 0 where nothing is."""
    count = mask.sum()
    return float(where(mask, values).sum() / count) if count else 0.0
