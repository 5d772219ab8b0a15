"""The teacher pass: what the teacher of each rollout says at the student's own tokens.

A teacher held here gives hidden states, one forward for each rollout. An expert that only answers queries (a server, a
black box), or a local one used as if it were one, gives a few tokens' log-weights at some states.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from errata.contexts import Rendered
from errata.experts import Access, Answer, Query, SelfTeacher, Teacher
from errata.experts.access import sample_states, sparse_distribution
from errata.experts.heads import gathered_head
from errata.experts.queries import joined, pad_answers
from errata.ops.scores import Head
from errata.records import Prompt, State, TeacherContext
from errata.training import compat
from errata.training.batch import SparseValues, TeacherOutputs, TokenBatch
from errata.training.forward import head_of
from errata.training.scoring import WHOLE_KL, Reader, Scorer
from errata.training.teacher_forward import MAX_PADDING, hidden_at_completions, teacher_sequences
from errata.training.turns import Piece, assemble, pieces

Encode = Callable[[list[Prompt], list[str | None]], list[list[int]]]
"""Prompts and their environments -> token ids as the policy sees them, chat template and generation prompt included."""
Metrics = dict[str, float]


class Expert(Protocol):
    """Another model that answers queries."""

    counters: Mapping[str, float]

    def answer(self, queries: list[Query]) -> list[Answer | None]: ...


@runtime_checkable
class StatefulExpert(Expert, Protocol):
    """An expert whose state belongs in every checkpoint."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a generation batch stands in the run; random draws depend on nothing else."""

    seed: int
    step: int
    first: int
    """Index of this process's first rollout among those of all processes."""

    def rng(self, row: int, purpose: str = "") -> random.Random:
        return random.Random(f"{self.seed}-{self.step}-{self.first + row}{purpose}")


@dataclass(frozen=True)
class TeacherPass:
    """Runs the teacher, or queries the expert, for one generation batch."""

    teacher: Teacher | None
    """A model held here, or ``None``."""
    expert: Expert | None
    """A model that only answers queries, or ``None``."""
    access: Access
    """How much of the expert's distribution is known, and where."""
    accelerator: Accelerator
    sharded: bool
    """Whether a model's forward is a collective over shards (FSDP, DeepSpeed)."""
    encode: Encode
    scorer: Scorer
    temperature: float
    micro_batch: int
    """Rollouts of one teacher forward."""
    self_on_failure: bool
    """Whether the policy itself is the teacher where the expert fails to answer."""
    keeps_head: bool
    """Whether a generation batch serves several optimizer steps, so that its states outlive the head they belong to."""

    @property
    def reader(self) -> Reader:
        """How the outputs are read."""
        return Reader(self.teacher, tail=self.access.gives == "topk")

    def __call__(
        self,
        model: nn.Module,
        tokens: TokenBatch,
        contexts: Sequence[TeacherContext],
        prompts: Sequence[Rendered],
        place: Place,
        no_checkpointing: Callable[[], AbstractContextManager[None]],
    ) -> tuple[TeacherOutputs, Metrics]:
        """The outputs of this process's rollouts, and metrics.

        Args:
            model: the student, wrapped.
            contexts, prompts: of each rollout.
        """
        with_teacher = [
            i for i, c in enumerate(contexts) if c.is_informative and c.use_teacher and not prompts[i].dropped
        ]
        outputs, metrics = self.run(self.teacher, model, tokens, prompts, with_teacher)
        if self.access.gives == "full":
            return self._with_head(model, outputs), metrics
        weights = self._states_to_query(model, tokens, prompts, with_teacher, place, no_checkpointing)
        answers: list[Answer | None] = [None] * len(contexts)
        if self.expert is None:
            answers = self._answers_of_teacher(model, outputs, weights, place)
        else:
            queries = [
                (i, query) for i in with_teacher for query in self._queries(i, prompts, tokens, weights[i], place)
            ]
            for (i, _), answer in zip(queries, self.expert.answer([query for _, query in queries]), strict=True):
                answers[i] = joined(answers[i], answer)
        ids, logp, counts = (x.to(tokens.device) for x in pad_answers(answers, weights, tokens.mask.shape[1]))
        failed: list[int] = []
        if self.expert is not None and self.self_on_failure:
            failed = [i for i in with_teacher if answers[i] is None and contexts[i].kind != "expert"]
        metrics |= self._expert_metrics([answers[i] for i in with_teacher], counts, tokens, len(failed))
        states = TeacherOutputs.none(len(contexts))
        # Where a forward is a collective, all processes run it as soon as one must.
        by_self = metrics["expert/by_self"] > 0 if self.sharded else bool(failed)
        if by_self:
            states, more = self.run(SelfTeacher(model, "live"), model, tokens, prompts, failed)
            metrics |= more
            counts[failed] = tokens.mask[failed].float()
        outputs = replace(states, sparse=SparseValues(ids, logp, counts), of_student=by_self)
        return self._with_head(model, outputs), metrics

    def _with_head(self, model: nn.Module, outputs: TeacherOutputs) -> TeacherOutputs:
        """The outputs with a copy of the head of this moment, where later optimizer steps will read them and change it."""
        student_head = head_of(self.accelerator.unwrap_model(model))
        if outputs.of_student:
            changes = student_head.weight.requires_grad
        else:
            changes = self.teacher is not None and self.teacher.head_changes(student_head)
        if not (self.keeps_head and changes):
            return outputs
        head = self._whole_head(model, outputs)
        bias = None if head.bias is None else head.bias.clone()
        return replace(outputs, head=replace(head, weight=head.weight.clone(), bias=bias))

    @torch.no_grad()
    def _whole_head(self, model: nn.Module, outputs: TeacherOutputs) -> Head:
        """The head that reads the outputs' states, outside of any forward. Collective under sharding."""
        student_head = head_of(self.accelerator.unwrap_model(model))
        with compat.gathered(student_head.weight, student_head.bias):
            return gathered_head(self.reader.head(outputs, student_head), student_head.weight.device)

    def run(
        self,
        teacher: Teacher | None,
        model: nn.Module,
        tokens: TokenBatch,
        prompts: Sequence[Rendered],
        rows: Sequence[int],
    ) -> tuple[TeacherOutputs, Metrics]:
        """The teacher's hidden states at the tokens of these rollouts, one forward for each or for each of its turns."""
        if teacher is None:
            return TeacherOutputs.none(len(prompts)), {}
        # A sharded model's forward is a collective: there every process runs all its rows, in equally many batches.
        run_rows = list(range(len(prompts))) if self.sharded else list(rows)
        lengths = tokens.lengths
        own = [piece for i in run_rows for piece in pieces(i, prompts[i], tokens.mask[i], lengths[i])]
        most = max(gather_object([len(own)])) if self.sharded else len(own)
        parts = [*own, *own[:1] * (most - len(own))]  # as many as another process has turns; their states are not read
        completions = [tokens.completion_ids[p.row, : p.end].tolist() for p in parts]
        sequences = teacher_sequences(
            self.encode([p.prompt for p in parts], [p.environment for p in parts]), completions
        )
        by_part, padding = [], 0.0
        for part in range(teacher.parts):
            with teacher.acting(model, part) as acting:
                # Processes run different numbers of forwards, and DDP's may be a collective: it broadcasts buffers.
                module = acting if self.sharded else self.accelerator.unwrap_model(acting)

                def forward(inputs: dict[str, Tensor], module: nn.Module = module) -> Tensor:
                    with self.accelerator.autocast():
                        hidden: Tensor = module(**inputs, with_head=lambda hidden, head: hidden)
                    return hidden

                found, padding = hidden_at_completions(
                    forward,
                    sequences,
                    max_rows=self.micro_batch,
                    device=tokens.device,
                    max_padding=1.0 if self.sharded else MAX_PADDING,
                )
            by_part.append(found)
        of_row: dict[int, list[tuple[Piece, Tensor]]] = {i: [] for i in run_rows}
        for piece, state in zip(own, teacher.join(by_part)[: len(own)], strict=True):
            of_row[piece.row].append((piece, state))
        wanted = set(rows)
        states = tuple(assemble(of_row[i], lengths[i]) if i in wanted else None for i in range(len(prompts)))
        return TeacherOutputs(states), {"teacher/padding": padding} if rows else {}

    def likeliest(self, outputs: TeacherOutputs, row: int, student_head: Head, n: int) -> tuple[Tensor, Tensor]:
        """The teacher's ``n`` likeliest tokens at each of a rollout's states, (T,n), and their probabilities.

        Of an expert that was queried: all that it gave, (T,K); a token drawn twice stands there twice.
        """
        state = outputs.states[row]
        if state is None:
            assert outputs.sparse is not None
            return outputs.sparse.tokens[row], outputs.sparse.logp[row].exp()
        head = self.reader.head(outputs, student_head)
        probability, token = head.logits(state).softmax(-1).topk(n, dim=-1)
        return token, probability

    # -- queries ---------------------------------------------------------------------------------------------------

    def _states_to_query(
        self,
        model: nn.Module,
        tokens: TokenBatch,
        prompts: Sequence[Rendered],
        rows: Sequence[int],
        place: Place,
        no_checkpointing: Callable[[], AbstractContextManager[None]],
    ) -> list[dict[int, float]]:
        """Of each rollout the states to query, and what a value there counts for."""
        share, where = self.access.share, self.access.where
        score = tokens.mask.float()
        if share < 1 and where == "entropy":
            found = self.scorer(model, tokens, ["student_entropy"], no_checkpointing=no_checkpointing())
            score = found.student_entropy
        elif share < 1 and where == "disagreement":
            # KL of the policy in each rollout's context from the policy without it.
            states, _ = self.run(SelfTeacher(model, "live"), model, tokens, prompts, rows)
            found = self.scorer(
                model,
                tokens,
                ["divergence"],
                replace(states, of_student=True),
                Reader(None, tail=False),
                divergence=WHOLE_KL,
                no_checkpointing=no_checkpointing(),
            )
            assert found.divergence is not None
            score = found.divergence
        weights: list[dict[int, float]] = [{} for _ in prompts]
        for i in rows:
            own = tokens.mask[i].nonzero().squeeze(1)
            rng = place.rng(i)
            chosen = sample_states(score[i, own].cpu(), share=share, unbiased=self.access.unbiased, rng=rng)
            weights[i] = {int(own[t]): weight for t, weight in chosen.items()}
        return weights

    def _answers_of_teacher(
        self, model: nn.Module, outputs: TeacherOutputs, weights: Sequence[Mapping[int, float]], place: Place
    ) -> list[Answer | None]:
        """What a model held here gives when it is used as an expert with limited access."""
        head = self._whole_head(model, outputs)
        answers: list[Answer | None] = []
        for i, (state, weight) in enumerate(zip(outputs.states, weights, strict=True)):
            if state is None or not weight:
                answers.append(None)
                continue
            positions = tuple(sorted(weight))
            logits = head.logits(state[list(positions)]) / self.temperature
            ids, logp = sparse_distribution(
                logits,
                gives=self.access.gives,
                top_k=self.access.top_k,
                samples=self.access.samples,
                seed=_draw_seed(place, i),
            )
            answers.append(Answer(positions, ids, logp))
        return answers

    def _queries(
        self, i: int, prompts: Sequence[Rendered], tokens: TokenBatch, weight: Mapping[int, float], place: Place
    ) -> list[Query]:
        """One for each piece of a rollout that has a state to query; one without states where none has."""
        parts = pieces(i, prompts[i], tokens.mask[i], int(tokens.completion_mask[i].sum()))
        positions = [tuple(t for t in sorted(weight) if p.start <= t < p.end) for p in parts]
        return [
            Query(
                prompt=piece.prompt,
                prompt_ids=tuple(self.encode([piece.prompt], [piece.environment])[0]),
                completion_ids=tuple(tokens.completion_ids[i, : piece.end].tolist()),
                positions=at,
                seed=_draw_seed(place, i),
            )
            for piece, at in zip(parts, positions, strict=True)
            if at or len(parts) == 1
        ]

    def _expert_metrics(
        self, answers: Sequence[Answer | None], counts: Tensor, tokens: TokenBatch, by_self: int
    ) -> Metrics:
        """Of all processes. Collective: call on every rank."""
        counters = {} if self.expert is None else dict(self.expert.counters)
        here = (
            int((counts > 0).sum()),
            int(tokens.mask.sum()),
            sum(a is None for a in answers),
            len(answers),
            by_self,
            len(tokens),
            *counters.values(),
        )
        states, generated, unanswered, queries, failed, rollouts, *totals = (
            sum(values) for values in zip(*gather_object([here]), strict=True)
        )
        return {
            "expert/states": float(states),
            "expert/share": states / max(generated, 1),
            "expert/unanswered": unanswered / max(queries, 1),
            **{f"expert/{name}": float(total) for name, total in zip(counters, totals, strict=True)},
            "expert/by_self": failed / rollouts,
        }


def _draw_seed(place: Place, row: int) -> int:
    return place.rng(row, "-draw").getrandbits(31)
