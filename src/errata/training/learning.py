"""From a marked batch to its loss: scores by the student as it stands, the method's signals, the two-stream objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.methods import Batch
from errata.ops.reduce import token_weights
from errata.ops.scores import (
    DivergenceSettings,
    Head,
    ModelStates,
    Objective,
    Streams,
    TokenScores,
    fused_loss,
    token_scores,
)
from errata.training import compat
from errata.training.forward import at_completion, completion_inputs, head_of
from errata.training.marking import SPARSE, generated
from errata.training.replay import fresh_and_past


class Learner:
    """What a trainer learns by; nothing in it outlives a batch.

    Signals are decided over the rollouts of all processes, so that credit is centred over whole groups wherever they were
    sampled.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def scores_in_place(self) -> bool:
        """One micro-batch is the whole generation batch and used once: the loss's own forward can be scored."""
        return bool(self._trainer.args.steps_per_generation == 1 and self._trainer.num_iterations == 1)

    def _score_options(self) -> dict[str, Any]:
        m = self._trainer.method
        return {
            "divergence": m.divergence,
            "alpha": m.alpha,
            "support": m.support,
            "k": m.top_k or 1,
            "temperature": self._trainer.temperature,
        }

    @torch.no_grad()
    def scored(
        self, batch: dict[str, Any], reads: Sequence[str], at: Tensor | None = None, divergence: str | None = None
    ) -> TokenScores:
        """Scores of this process's generation batch by the student as it stands, in micro-batches.

        Args:
            batch: with ``teacher_states`` where the teacher's fields are wanted.
            reads: the fields that must be right.
            at: (B,T) bool, the tokens; all that the student generated unless given.
            divergence: another than the method's, over the whole vocabulary.
        """
        trainer, size = self._trainer, self._trainer.args.per_device_train_batch_size
        mask = generated(batch) if at is None else at
        # A sharded head is whole only within the model's forward.
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        without_student = _of_the_teacher(batch, reads) and not sharded

        def scores_of(rows: slice) -> TokenScores:
            tokens = batch["completion_ids"][rows]
            part = {k: v[rows] for k, v in batch.items() if k in ("teacher_states", *SPARSE)}

            def on_head(hidden: Tensor, head: Head) -> TokenScores:
                own = at_completion(hidden, tokens.shape[1])
                return self._token_scores(tokens, mask[rows], part, reads, divergence, own, head)

            with trainer.accelerator.autocast():
                if without_student:
                    head = head_of(trainer.accelerator.unwrap_model(trainer.model))
                    return on_head(head.weight.new_empty(0, 0, 0), head)
                prompt, keep = batch["prompt_ids"][rows], batch["prompt_mask"][rows]
                inputs = completion_inputs(prompt, keep, tokens, batch["completion_mask"][rows])
                return trainer.model(**inputs, with_head=on_head)  # type: ignore[no-any-return]

        with compat.no_checkpointing(trainer):
            parts = [scores_of(slice(start, start + size)) for start in range(0, len(mask), size)]
        return TokenScores._make(None if f[0] is None else torch.cat(f) for f in zip(*parts, strict=True))

    def _token_scores(
        self,
        tokens: Tensor,
        mask: Tensor,
        batch: dict[str, Any],
        reads: Sequence[str],
        divergence: str | None,
        hidden: Tensor,
        head: Head,
    ) -> TokenScores:
        """By as few products as ``reads`` allows."""
        temperature = self._trainer.temperature
        if "teacher_states" not in batch:
            return token_scores(hidden, head, None, None, tokens, mask=mask, temperature=temperature)
        told = self._trainer.marker.arguments(batch, hidden, head, mask)
        if _of_the_teacher(batch, reads):
            by, its_head, where = told["teacher_hidden"], told["teacher_head"], told["teacher_mask"]
            its = token_scores(by, its_head, None, None, tokens, mask=where, temperature=temperature)
            none = torch.zeros_like(its.student_logp)
            return TokenScores(none, its.student_logp, none, its.student_entropy, None)
        options = self._score_options()
        if divergence is not None or "divergence" not in reads:
            options |= {"divergence": divergence or "forward_ce", "support": "full"}
        return token_scores(hidden, head, tokens=tokens, mask=mask, **told, **options)

    def decide(
        self,
        batch: dict[str, Any],
        scores: TokenScores | Callable[[Tensor], TokenScores],
    ) -> dict[str, Any]:
        """The method's signals for this process's rollouts, decided over the rollouts of all processes.

        Args:
            scores: of this process's rollouts; or how to make them at a (B,T) mask of its tokens, which all processes are
                asked for or none.
        """
        everyone, method = self._gathered, self._trainer.method
        mask = everyone(generated(batch))
        whole = Batch(
            mask=mask.bool(),
            scores=None,
            reward=everyone(batch["reward"]),
            advantage=everyone(batch["advantages"]),
            group=everyone(batch["group"]),
            has_teacher=everyone(batch["has_teacher"]),
            available=everyone(batch["available"]),
            success=everyone(batch["reward"]) >= method.success_threshold,
            pass_rate=everyone(batch["pass_rate"]),
            stage=int(batch["stage"]),
            asked=everyone(batch["asked"]) if "asked" in batch else None,
        )
        first = self._trainer.accelerator.process_index * len(batch["rollout"])
        rows, columns = slice(first, first + len(batch["rollout"])), batch["completion_ids"].shape[1]
        if method.reads:
            if callable(scores):
                at = method.reads_at(whole)
                none = torch.zeros(len(batch["rollout"]), columns, device=mask.device)
                scores = scores(at[rows, :columns]) if at.any() else TokenScores(none, none, none, none, none)
            whole = replace(whole, scores=TokenScores._make(None if f is None else everyone(f) for f in scores))
        signals = method.signals(whole)
        for name, value in signals.metrics.items():
            self._trainer.log_metric(name, value)
        count = mask.sum().float()
        n_rl, n_sd = count, count
        if method.denominators == "routed":
            # Where few states were asked, each stands for several.
            n_rl, n_sd = (signals.rl_weight > 0).sum().float(), ((signals.sd_weight > 0) * whole.marks).sum()
        mine = {
            "advantage": signals.advantage,
            "rl_weight": signals.rl_weight,
            "sd_weight": signals.sd_weight,
            **{f"extra/{k}": v for k, v in signals.extras.items()},
        }
        return {**{k: v[rows, :columns] for k, v in mine.items()}, "n_rl": n_rl, "n_sd": n_sd}

    def _gathered(self, values: Tensor) -> Tensor:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return values
        if values.dim() > 1:
            values = accelerator.pad_across_processes(values, dim=1)
        return accelerator.gather(values)  # type: ignore[no-any-return]

    def loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, TokenScores, Head]:
        """The loss of one micro-batch, its scores, and the student's head as it was then. Decides the micro-batch's signals
        where they were not."""
        replay = self._trainer.replay
        tokens, mask = inputs["completion_ids"], generated(inputs)
        past = None if replay is None else replay.ride_along(inputs)
        student_head: list[Head] = []  # not returned by the model: what it returns may be copied in another type

        def on_head(hidden: Tensor, head: Head) -> tuple[Tensor, TokenScores]:
            student_head.append(head)
            hidden, past_hidden = fresh_and_past(hidden, tokens.shape, past)
            if "rl_weight" not in inputs and not self._one_walk(inputs):
                reads, own = self._trainer.method.reads, hidden.detach()
                with torch.no_grad():
                    inputs.update(
                        self.decide(inputs, lambda at: self._token_scores(tokens, at, inputs, reads, None, own, head))
                    )
            loss, scores = self._loss(hidden, head, tokens, mask, inputs)
            if past is not None:
                among = self._counted(mask, inputs["sd_weight"])
                weights = self._token_weights(past["mask"], inputs["n_sd"].clamp(min=1), among)
                loss = loss + replay.loss(past_hidden, head, past, weights)
            return loss, scores

        if past is None:
            student = completion_inputs(inputs["prompt_ids"], inputs["prompt_mask"], tokens, inputs["completion_mask"])
        else:
            student = replay.joined(inputs, past)
        with self._trainer.accelerator.autocast():
            loss, scores = model(**student, with_head=on_head)
        return loss, scores, student_head[0]

    def _one_walk(self, inputs: dict[str, Any]) -> bool:
        """Whether the loss can decide its signals as it goes: what a token is given depends on later tokens alone, all of
        them are here, and one kind of teacher marked them."""
        method = self._trainer.method
        marked = bool(inputs["has_teacher"].any())
        mixed = "named_tokens" in inputs and any(s is not None for s in inputs["teacher_states"])
        alone = self._trainer.accelerator.num_processes == 1 and method.denominators == "shared"
        return method.looks_ahead and alone and marked and not mixed

    def _loss(
        self, hidden: Tensor, head: Head, tokens: Tensor, mask: Tensor, inputs: dict[str, Any]
    ) -> tuple[Tensor, TokenScores]:
        trainer, m = self._trainer, self._trainer.method
        told = trainer.marker.arguments(inputs, hidden, head, mask)

        def weighted(decided: dict[str, Any]) -> Streams:
            """Advantage and the two weights, their denominators in them."""
            rl_weight, sd_weight = decided["rl_weight"], decided["sd_weight"]
            rl_weight = rl_weight * self._token_weights(self._counted(mask, rl_weight), decided["n_rl"])
            sd_weight = sd_weight * self._token_weights(self._counted(mask, sd_weight), decided["n_sd"])
            if "importance_sampling_ratio" in inputs:  # vLLM sampled with slightly other probabilities
                rl_weight = rl_weight * inputs["importance_sampling_ratio"]
                sd_weight = sd_weight * inputs["importance_sampling_ratio"]
            return Streams(decided["advantage"], rl_weight, sd_weight)

        def decide(scores: TokenScores) -> Streams:
            inputs.update(self.decide(inputs, scores))
            return weighted(inputs)

        teacher = None
        if told["teacher_hidden"] is not None:
            teacher = ModelStates(told["teacher_hidden"], told["teacher_head"])
        sparse, streams = told.get("sparse"), decide if "rl_weight" not in inputs else weighted(inputs)
        if isinstance(streams, Streams) and not inputs["has_teacher"].any():
            teacher, sparse, streams = None, None, streams._replace(sd_weight=None)
        return fused_loss(
            ModelStates(hidden, head),
            teacher,
            tokens,
            streams,
            mask=mask,
            teacher_mask=told["teacher_mask"],
            sparse=sparse,
            old_logp=inputs.get("old_per_token_logps"),
            objective=Objective(
                DivergenceSettings(m.divergence, m.alpha, m.support, m.top_k or 1),
                surrogate=m.surrogate,
                clip_low=trainer.epsilon_low,
                clip_high=trainer.epsilon_high,
                importance_clip=m.importance_clip,
                token_clip=m.token_clip,
            ),
            temperature=trainer.temperature,
        )

    def _counted(self, mask: Tensor, weight: Tensor) -> Tensor:
        """(B,T) bool: the tokens whose number divides a stream with this weight."""
        return mask if self._trainer.method.denominators == "shared" else weight > 0

    def _token_weights(self, counted: Tensor, count: Tensor, among: Tensor | None = None) -> Tensor:
        """(B,T): what each token's loss is divided by, as TRL's ``loss_type`` says.

        Args:
            counted: (B,T) bool, the tokens that a stream counts.
            count: how many there are in the generation batch of all processes.
            among: see ``token_weights``.
        """
        trainer = self._trainer
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        # The optimizer averages over processes and micro-batches.
        share = steps / trainer.args.steps_per_generation / trainer.accelerator.num_processes
        return token_weights(
            counted,
            trainer.loss_type,
            total=count * share,
            max_length=trainer.max_completion_length,
            accumulation=steps,
            among=among,
        )


def _of_the_teacher(batch: dict[str, Any], reads: Sequence[str]) -> bool:
    """Whether a teacher's own distributions are at hand and all that is read."""
    whole = "teacher_states" in batch and "named_tokens" not in batch
    return whole and {*reads} <= {"teacher_logp", "teacher_entropy"}
