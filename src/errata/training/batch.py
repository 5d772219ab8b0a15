"""One generation batch of this process, from rollouts to signals, as typed values. TRL's keys are known to ``compat`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from errata.contexts import Rendered
from errata.ops.scores import Head
from errata.records import Rollout, TeacherContext


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token tensors of B rollouts: prompts of at most P tokens padded on the left, completions of at most T on the right."""

    prompt_ids: Tensor
    """(B,P)."""
    prompt_mask: Tensor
    """(B,P) 1 at tokens, 0 at padding."""
    completion_ids: Tensor
    """(B,T)."""
    completion_mask: Tensor
    """(B,T) 1 at tokens that the model reads, 0 at padding."""
    mask: Tensor
    """(B,T) bool: completion tokens that the student itself generated; tool output is not among them."""
    advantage: Tensor
    """(B,) reward less its group's mean, scaled as TRL's ``scale_rewards`` says; 0 where there is no reward."""
    old_logp: Tensor | None = None
    """(B,T) log-probabilities at sampling time, where the policy may have moved since."""
    sampler_ratio: Tensor | None = None
    """(B,T) of tokens or (B,1) of rollouts: corrections for an engine that samples with slightly other probabilities (vLLM)."""

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def device(self) -> torch.device:
        return self.completion_ids.device

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion, tool output included."""
        return [int(n) for n in self.completion_mask.sum(1).tolist()]

    def select(self, rows: Tensor | slice) -> TokenBatch:
        """These rows, with the same padding."""
        parts = {
            name: None if (value := getattr(self, name)) is None else value[rows] for name in self.__dataclass_fields__
        }
        return TokenBatch(**parts)  # type: ignore[arg-type]

    def model_inputs(self) -> dict[str, Tensor]:
        """Prompts followed by completions, (B,P+T), as the model's forward takes them."""
        return {
            "input_ids": torch.cat([self.prompt_ids, self.completion_ids], dim=1),
            "attention_mask": torch.cat([self.prompt_mask, self.completion_mask], dim=1),
        }


@dataclass(frozen=True, slots=True)
class SparseValues:
    """What an expert gives at some states only: a few tokens' log-weights."""

    tokens: Tensor
    """(B,T,K) ids; anything where ``logp`` is -inf."""
    logp: Tensor
    """(B,T,K) log-weights."""
    query_weight: Tensor
    """(B,T) what each state's value counts for in sums over all states; 0 at states without one."""

    def select(self, rows: Tensor | slice) -> SparseValues:
        return SparseValues(self.tokens[rows], self.logp[rows], self.query_weight[rows])


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """What the teacher's forward pass left of each rollout: hidden states, or sparse values of an expert, or nothing."""

    states: tuple[Tensor | None, ...]
    """Of each rollout (T_i,H'), the states that predict its completion tokens; ``None`` without a whole distribution."""
    sparse: SparseValues | None = None
    of_student: bool = False
    """Whether the states are the student's own (shown a context), so that the student's head reads them."""
    head: Head | None = None
    """The head that belongs to the states, where they outlive the weights they were computed with."""

    @property
    def has_states(self) -> Tensor:
        """(B,) bool, on the CPU."""
        return torch.tensor([state is not None for state in self.states], dtype=torch.bool)

    @property
    def has_teacher(self) -> Tensor:
        """(B,) bool, on the CPU: a teacher has scored this rollout."""
        if self.sparse is None:
            return self.has_states
        return self.has_states | (self.sparse.query_weight > 0).any(1).cpu()

    def select(self, rows: Tensor) -> TeacherOutputs:
        states = tuple(self.states[i] for i in rows.tolist())
        return replace(self, states=states, sparse=None if self.sparse is None else self.sparse.select(rows))

    @classmethod
    def none(cls, rollouts: int) -> TeacherOutputs:
        """Of ``rollouts`` rollouts without a teacher."""
        return cls((None,) * rollouts)


@dataclass(frozen=True, slots=True)
class LocalSignals:
    """A method's signals for this process's rollouts, with the denominators over all processes."""

    advantage: Tensor
    """(B,T) A_t of the policy-gradient stream."""
    rl_weight: Tensor
    """(B,T) w_RL."""
    sd_weight: Tensor
    """(B,T) w_SD."""
    rl_count: Tensor
    """0-d: tokens that divide the policy-gradient stream, of the generation batch of all processes."""
    sd_count: Tensor
    """0-d: tokens that divide the distillation stream."""
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,T) each, for ``rollouts.jsonl``."""
    per_rollout: Mapping[str, Tensor] = field(default_factory=dict)
    """(B,) each, for ``rollouts.jsonl``."""

    def select(self, rows: Tensor) -> LocalSignals:
        return replace(
            self,
            advantage=self.advantage[rows],
            rl_weight=self.rl_weight[rows],
            sd_weight=self.sd_weight[rows],
            per_token={name: value[rows] for name, value in self.per_token.items()},
            per_rollout={name: value[rows] for name, value in self.per_rollout.items()},
        )


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """All that is known about one generation batch of this process; a micro-batch is a selection of its rows."""

    rollouts: Sequence[Rollout]
    """B rollouts with their verdicts."""
    contexts: Sequence[TeacherContext]
    """What each rollout's teacher is shown."""
    prompts: Sequence[Rendered]
    """Each teacher's prompt; the student's own where there is no context."""
    tokens: TokenBatch
    teacher: TeacherOutputs
    signals: LocalSignals | None = None
    """``None`` until they are decided."""
    everyone: Sequence[Rollout] = ()
    """The rollouts of all processes, in the order of their index."""
    all_contexts: Sequence[TeacherContext] = ()
    """Their contexts."""
    reward_only: bool = False
    """Whether the guard has turned the teacher off: the rewards alone decide, as in GRPO."""

    def __len__(self) -> int:
        return len(self.rollouts)

    def select(self, rows: Tensor) -> GenerationBatch:
        """The micro-batch of these rows."""
        index = rows.tolist()
        return replace(
            self,
            rollouts=[self.rollouts[i] for i in index],
            contexts=[self.contexts[i] for i in index],
            prompts=[self.prompts[i] for i in index],
            tokens=self.tokens.select(rows),
            teacher=self.teacher.select(rows),
            signals=None if self.signals is None else self.signals.select(rows),
        )


def gather_rows(accelerator: Accelerator, values: Tensor) -> Tensor:
    """(B,...) of every process -> their rows one after another, dimension 1 padded with 0 to the longest. Collective.

    Every process must give the same dtype. Masks come back as bool: they are sent as bytes, because padding a bool tensor
    across processes would change its type on some ranks only.
    """
    if accelerator.num_processes == 1:
        return values
    sent = values.to(torch.uint8) if values.dtype == torch.bool else values
    if sent.dim() > 1:
        sent = accelerator.pad_across_processes(sent, dim=1)
    gathered: Tensor = accelerator.gather(sent.contiguous())
    return gathered.bool() if values.dtype == torch.bool else gathered
