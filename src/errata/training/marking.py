"""From teacher contexts to marks: the teacher's hidden states at the student's tokens, or what an expert answers there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.contexts import Rendered
from errata.experts import SelfTeacher
from errata.experts.access import Access
from errata.experts.access import sample_states as chosen_states
from errata.experts.access import sparse_distribution as named
from errata.experts.queries import Answer
from errata.experts.queries import Query as Question
from errata.experts.queries import pad_answers as spread
from errata.ops.scores import Head, SparseTeacher
from errata.records import TeacherContext
from errata.training.forward import head_of
from errata.training.teaching import hidden_at_completions, padded_states, teacher_sequences

SPARSE = ("named_tokens", "named_logp", "asked")
"""What a batch holds of sparse answers."""


class Marker:
    """Asks whoever marks: a model held here (``teacher``), or an expert that only answers questions (``expert``).

    What it adds to a generation batch of B rollouts: ``teacher_states``, a list of (T_i, H) or ``None``; where answers are
    sparse also ``named_tokens`` and ``named_logp`` (B,T,K) and ``asked`` (B,T), what each state's answer counts for.
    """

    def __init__(self, trainer: Any, access: Access, expert: Any = None) -> None:
        self._trainer, self.access, self.expert = trainer, access, expert
        self._by_policy = False  # whether the states at hand are the policy's own, whoever else marks

    def mark(
        self, contexts: Sequence[TeacherContext], rendered: Sequence[Rendered], batch: dict[str, Any], first: int
    ) -> dict[str, Any]:
        """Args: the contexts and prompts of this process's rollouts, their batch, and the index of the first of them."""
        wanted = [i for i, c in enumerate(contexts) if c.informs and c.needed and not rendered[i].dropped]
        states = self.states(self._trainer.teacher, rendered, batch, wanted)
        added: dict[str, Any] = {"teacher_states": states}
        if self.access.gives != "full":
            weights = self._chosen(contexts, rendered, batch, wanted, first)
            answers: list[Answer | None] = [None] * len(contexts)
            if self.expert is None:
                answers = self._narrowed(states, weights, first)
            else:
                questions = [self._question(i, rendered, batch, weights[i], first) for i in wanted]
                for i, answer in zip(wanted, self.expert.answer(questions), strict=True):
                    answers[i] = answer
            length, device = batch["completion_ids"].shape[1], batch["completion_ids"].device
            tokens, logp, counts = (x.to(device) for x in spread(answers, weights, length))
            self._log(answers, wanted, counts, batch)
            states = self._instead(answers, contexts, rendered, batch, wanted)
            for i, state in enumerate(states):
                if state is not None:
                    counts[i] = generated(batch)[i].float()
            added = {"teacher_states": states, "named_tokens": tokens, "named_logp": logp, "asked": counts}
        marked = torch.tensor([s is not None for s in added["teacher_states"]], device=batch["completion_ids"].device)
        added["has_teacher"] = marked | (added["asked"] > 0).any(1) if "asked" in added else marked
        return added

    def _instead(
        self,
        answers: Sequence[Answer | None],
        contexts: Sequence[TeacherContext],
        rendered: Sequence[Rendered],
        batch: dict[str, Any],
        wanted: Sequence[int],
    ) -> list[Tensor | None]:
        """The policy's own marks of rollouts that a server left unanswered, where the recipe wants them."""
        trainer = self._trainer
        left: list[int] = []
        if self.expert is not None and trainer.args.expert_on_failure == "self":
            left = [i for i in wanted if answers[i] is None and contexts[i].kind != "expert"]
        trainer.log_metric("expert/by_self", len(left) / max(len(contexts), 1))
        return (
            self.states(SelfTeacher(trainer.model, "live"), rendered, batch, left) if left else [None] * len(contexts)
        )

    # -- whole distributions --------------------------------------------------------------------------------------

    def states(
        self, teacher: Any, rendered: Sequence[Rendered], batch: dict[str, Any], wanted: Sequence[int]
    ) -> list[Tensor | None]:
        """The teacher's hidden states at each wanted rollout's tokens, one forward each."""
        trainer = self._trainer
        states: list[Tensor | None] = [None] * len(rendered)
        if teacher is None:
            return states
        # A sharded model's forward is a collective: there every process runs all its rows in equal batches.
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        rows = list(range(len(rendered))) if sharded else list(wanted)
        lengths = batch["completion_mask"].sum(1).tolist()
        completions = [batch["completion_ids"][i, : lengths[i]].tolist() for i in rows]
        sequences = teacher_sequences(trainer.encode_prompts([rendered[i].prompt for i in rows]), completions)
        by_part = []
        for part in range(teacher.parts):
            with teacher.acting(trainer.model, part) as model:

                def run(model_inputs: dict[str, Any], model: Any = model) -> Tensor:
                    with trainer.accelerator.autocast():
                        hidden: Tensor = model(**model_inputs, with_head=lambda hidden, head: hidden)
                    return hidden

                found, padding = hidden_at_completions(
                    run,
                    sequences,
                    max_rows=trainer.args.per_device_train_batch_size,
                    device=batch["completion_ids"].device,
                )
            by_part.append(found)
        found_at = dict(zip(rows, teacher.join(by_part), strict=True))
        for i in wanted:
            states[i] = found_at[i]
        if wanted:
            trainer.log_metric("teacher/padding", padding)
        return states

    def head(self, student_head: Head) -> Head:
        """The head that reads the teacher's states. A sharded one is gathered here, so every process must come by."""
        teacher = None if self._by_policy else self._trainer.teacher
        return student_head if teacher is None else teacher.head(student_head, head_of)

    def arguments(self, inputs: dict[str, Any], hidden: Tensor, student_head: Head, mask: Tensor) -> dict[str, Any]:
        """What ``token_scores`` and ``fused_loss`` are told of the teacher, for the student's (B,T,H) ``hidden``."""
        states = inputs["teacher_states"]
        taught = torch.tensor([s is not None for s in states], device=mask.device)[:, None]
        told: dict[str, Any] = {"teacher_hidden": None, "teacher_head": None, "teacher_mask": mask & taught}
        if "named_tokens" in inputs:
            asked, tail = (inputs["asked"] > 0) & ~taught, self.access.gives == "topk"
            told["sparse"] = SparseTeacher(inputs["named_tokens"], inputs["named_logp"], asked & mask, tail)
        if "sparse" not in told or any(s is not None for s in states):
            head = self.head(student_head)
            width = head.weight.shape[1]
            told["teacher_head"] = head
            told["teacher_hidden"] = padded_states(states, mask.shape[1], hidden.detach(), width=width)
        return told

    def alternatives(self, inputs: dict[str, Any], row: int, student_head: Head, n: int) -> tuple[Tensor, Tensor]:
        """The teacher's ``n`` likeliest tokens at each of a rollout's states, (T, n), and their probabilities; of an expert
        that was asked, all that it named, a token drawn twice standing there twice."""
        state = inputs["teacher_states"][row]
        if state is None:
            return inputs["named_tokens"][row], inputs["named_logp"][row].exp()
        probability, token = self.head(student_head).logits(state).softmax(-1).topk(n, dim=-1)
        return token, probability

    # -- answers to questions -------------------------------------------------------------------------------------

    def _chosen(
        self,
        contexts: Sequence[TeacherContext],
        rendered: Sequence[Rendered],
        batch: dict[str, Any],
        wanted: Sequence[int],
        first: int,
    ) -> list[dict[int, float]]:
        """Of each rollout the states to ask about, and what an answer there counts for."""
        trainer, ask = self._trainer, self.access
        weights: list[dict[int, float]] = [{} for _ in contexts]
        mask = generated(batch)
        score = mask.float()
        if ask.share < 1 and ask.where == "entropy":
            score = trainer.learner.scored(batch, ["student_entropy"]).student_entropy
        elif ask.share < 1 and ask.where == "disagreement":
            score = self._disagreement(rendered, batch, wanted)
        for i in wanted:
            own = mask[i].nonzero().squeeze(1)
            rng = random.Random(f"{trainer.args.seed}-{trainer.state.global_step}-{first + i}")
            chosen = chosen_states(score[i, own].cpu(), share=ask.share, unbiased=ask.unbiased, rng=rng)
            weights[i] = {int(own[t]): weight for t, weight in chosen.items()}
        return weights

    def _disagreement(self, rendered: Sequence[Rendered], batch: dict[str, Any], wanted: Sequence[int]) -> Tensor:
        """(B,T) KL of the policy in each rollout's context from the policy without it."""
        states = self.states(SelfTeacher(self._trainer.model, "live"), rendered, batch, wanted)
        self._by_policy = True
        try:
            both, reads = {**batch, "teacher_states": states}, ["divergence"]
            found: Tensor = self._trainer.learner.scored(both, reads, divergence="forward_kl").divergence
        finally:
            self._by_policy = False
        return found

    def _narrowed(
        self, states: Sequence[Tensor | None], weights: Sequence[dict[int, float]], first: int
    ) -> list[Answer | None]:
        """What a model held here would say through the narrower door."""
        trainer, ask = self._trainer, self.access
        head = self.head(head_of(trainer.accelerator.unwrap_model(trainer.model)))
        answers: list[Answer | None] = []
        for i, (state, weight) in enumerate(zip(states, weights, strict=True)):
            if state is None or not weight:
                answers.append(None)
                continue
            positions = tuple(sorted(weight))
            logits = head.logits(state[list(positions)]) / trainer.temperature
            seed = self._seed(first + i)
            tokens, logp = named(logits, gives=ask.gives, top_k=ask.top_k, samples=ask.samples, seed=seed)
            answers.append(Answer(positions, tokens, logp))
        return answers

    def _question(
        self, i: int, rendered: Sequence[Rendered], batch: dict[str, Any], weight: dict[int, float], first: int
    ) -> Question:
        length = int(batch["completion_mask"][i].sum())
        return Question(
            prompt=rendered[i].prompt,
            prompt_ids=tuple(self._trainer.encode_prompts([rendered[i].prompt])[0]),
            completion_ids=tuple(batch["completion_ids"][i, :length].tolist()),
            positions=tuple(sorted(weight)),
            seed=self._seed(first + i),
        )

    def _seed(self, index: int) -> int:
        trainer = self._trainer
        return random.Random(f"{trainer.args.seed}-{trainer.state.global_step}-{index}-draw").getrandbits(31)

    def _log(
        self, answers: Sequence[Answer | None], wanted: Sequence[int], counts: Tensor, batch: dict[str, Any]
    ) -> None:
        trainer = self._trainer
        states = int((counts > 0).sum())
        trainer.log_metric("expert/states", states)
        trainer.log_metric("expert/share", states / max(int(generated(batch).sum()), 1))
        trainer.log_metric("expert/unanswered", sum(answers[i] is None for i in wanted) / max(len(wanted), 1))
        if self.expert is not None:
            for name, value in self.expert.counters.items():
                trainer.log_metric(f"expert/{name}", value)


def generated(batch: dict[str, Any]) -> Tensor:
    """(B,T) bool: completion tokens the student itself generated."""
    mask: Tensor = batch["completion_mask"]
    return (mask if "tool_mask" not in batch else mask * batch["tool_mask"]).bool()
