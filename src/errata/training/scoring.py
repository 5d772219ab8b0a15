"""Per-token scores of a generation batch by the student as it stands, without gradient, by as few products as will do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from errata.experts import Teacher
from errata.ops.scores import DivergenceSettings, Head, SparseTeacher, TokenScores, token_scores
from errata.training.batch import TeacherOutputs, TokenBatch
from errata.training.forward import at_completion, head_of
from errata.training.teacher_forward import padded_states

WHOLE_KL = DivergenceSettings("forward_kl")
_TEACHER_FIELDS = {"teacher_logp", "teacher_entropy"}


@dataclass(frozen=True)
class TeacherValues:
    """What the score ops take of a teacher, for the student's hidden states (B,T,H)."""

    hidden: Tensor | None
    """(B,T,H'), or ``None`` where only sparse values are known."""
    head: Head | None
    mask: Tensor
    """(B,T) bool: tokens whose teacher is given by ``hidden``."""
    sparse: SparseTeacher | None


class TeacherReader(Protocol):
    """How a teacher's outputs are read: its head, and whether sparse values are top-k log-probabilities (with a tail)."""

    def values(self, outputs: TeacherOutputs, hidden: Tensor, student_head: Head, mask: Tensor) -> TeacherValues: ...


@dataclass(frozen=True)
class Reader:
    """The ``TeacherReader`` of a run's teacher. Collective under sharding: a sharded head is gathered on every rank."""

    teacher: Teacher | None
    """``None``: the states are the student's own."""
    tail: bool
    """Whether the rest of sparse values' mass is one further bucket."""

    def head(self, outputs: TeacherOutputs, student_head: Head) -> Head:
        """The head that reads the outputs' states."""
        if outputs.head is not None:
            return outputs.head
        if self.teacher is None or outputs.of_student:
            return student_head
        return self.teacher.head(student_head, head_of)

    def values(self, outputs: TeacherOutputs, hidden: Tensor, student_head: Head, mask: Tensor) -> TeacherValues:
        """For the student's (B,T,H) ``hidden`` at the tokens of ``mask`` (B,T)."""
        with_states = outputs.has_states.to(mask.device)[:, None]
        sparse = None
        if outputs.sparse is not None:
            known = (outputs.sparse.query_weight > 0) & ~with_states & mask
            sparse = SparseTeacher(outputs.sparse.tokens, outputs.sparse.logp, known, self.tail)
        if sparse is not None and not with_states.any():
            return TeacherValues(None, None, mask & with_states, sparse)
        head = self.head(outputs, student_head)
        states = padded_states(outputs.states, mask.shape[1], hidden.detach(), width=head.weight.shape[1])
        return TeacherValues(states, head, mask & with_states, sparse)


@dataclass(frozen=True)
class Scorer:
    """``scorer(model, tokens, outputs, ...)``: ``TokenScores`` of this process's rollouts, in micro-batches."""

    accelerator: Accelerator
    sharded: bool
    """Whether the model's weights are whole only within its forward (FSDP, DeepSpeed)."""
    divergence: DivergenceSettings
    temperature: float
    micro_batch: int
    """Rollouts of one forward."""

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        tokens: TokenBatch,
        fields: Sequence[str],
        outputs: TeacherOutputs | None = None,
        reader: TeacherReader | None = None,
        *,
        at: Tensor | None = None,
        divergence: DivergenceSettings | None = None,
        no_checkpointing: AbstractContextManager[None],
    ) -> TokenScores:
        """Scores by ``model``, the student as it stands.

        Args:
            fields: the fields of ``TokenScores`` that are needed.
            outputs, reader: the teacher, where its fields are needed.
            at: (B,T) bool, the tokens; all that the student generated unless given.
            divergence: another than the method's.
            no_checkpointing: a context without gradient checkpointing.
        """
        mask = tokens.mask if at is None else at
        without_student = _teacher_only(outputs, fields) and not self.sharded
        parts = []
        with no_checkpointing, self.accelerator.autocast():
            for start in range(0, len(tokens), self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                index = torch.arange(len(tokens))[rows]
                part, told = tokens.select(rows), None if outputs is None else outputs.select(index)

                def on_head(
                    hidden: Tensor,
                    head: Head,
                    part: TokenBatch = part,
                    told: TeacherOutputs | None = told,
                    here: Tensor = mask[rows],
                ) -> TokenScores:
                    own = hidden if without_student else at_completion(hidden, part.completion_ids.shape[1])
                    return self.of_hidden(own, head, part, fields, told, reader, at=here, divergence=divergence)

                if without_student:
                    head = head_of(self.accelerator.unwrap_model(model))
                    parts.append(on_head(head.weight.new_empty(0, 0, 0), head))
                else:
                    parts.append(model(**part.model_inputs(), with_head=on_head))
        return TokenScores._make(None if f[0] is None else torch.cat(f) for f in zip(*parts, strict=True))

    @torch.no_grad()
    def of_hidden(
        self,
        hidden: Tensor,
        head: Head,
        tokens: TokenBatch,
        fields: Sequence[str],
        outputs: TeacherOutputs | None = None,
        reader: TeacherReader | None = None,
        *,
        at: Tensor,
        divergence: DivergenceSettings | None = None,
    ) -> TokenScores:
        """Scores at the student's hidden states (B,T,H). Fields that were not asked for are ``None`` or not meaningful."""
        ids = tokens.completion_ids
        if outputs is None or reader is None:
            return token_scores(hidden, head, None, None, ids, mask=at, temperature=self.temperature)
        teacher = reader.values(outputs, hidden, head, at)
        if _teacher_only(outputs, fields):
            assert teacher.hidden is not None and teacher.head is not None
            its = token_scores(
                teacher.hidden, teacher.head, None, None, ids, mask=teacher.mask, temperature=self.temperature
            )
            unknown = torch.zeros_like(its.student_logp)
            return TokenScores(unknown, its.student_logp, unknown, its.student_entropy, None)
        chosen = divergence or (self.divergence if "divergence" in fields else DivergenceSettings())
        return token_scores(
            hidden,
            head,
            teacher.hidden,
            teacher.head,
            ids,
            mask=at,
            temperature=self.temperature,
            teacher_mask=teacher.mask,
            sparse=teacher.sparse,
            divergence=chosen.kind,
            alpha=chosen.alpha,
            support=chosen.support,
            k=chosen.top_k,
            tail=chosen.tail,
            entry_clip=chosen.entry_clip,
        )


def _teacher_only(outputs: TeacherOutputs | None, fields: Sequence[str]) -> bool:
    """Whether a teacher's whole distributions are at hand and are all that is needed."""
    return outputs is not None and outputs.sparse is None and {*fields} <= _TEACHER_FIELDS
