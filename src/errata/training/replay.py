"""DAgger's aggregation in the trainer: past rollouts ride along in the student's forward, and are learned from by the local
term alone (their future is not today's policy's)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.experts.access import sparse_distribution as named
from errata.experts.aggregate import Aggregate
from errata.experts.aggregate import PastRollout as Past
from errata.experts.aggregate import pad_rollouts as padded
from errata.experts.aggregate import prefix_importance as reach
from errata.ops.scores import Head, SparseTeacher, TokenScores, fused_loss, token_scores
from errata.training.forward import at_completion, completion_inputs

TOP_K = 20
"""What is kept of a teacher whose whole distribution is to be had; the rest of its mass is one bucket."""


class Replay:
    """Keeps each step's marked rollouts and adds some of the past ones to later losses.

    Args:
        trainer: whose rollouts.
        capacity: rollouts kept, by each process.
        share: past rollouts for each fresh one.
        limit: largest importance weight of a past state.
    """

    def __init__(self, trainer: Any, capacity: int, share: float, limit: float) -> None:
        if share <= 0 or limit <= 0:
            raise ValueError(f"replay_share: {share} and replay_limit {limit} must be positive")
        if trainer.method.divergence not in ("forward_ce", "forward_kl"):
            raise ValueError(
                f"replay_capacity: past answers teach by forward cross-entropy, not by {trainer.method.divergence}; "
                "use method: distil, or leave it out"
            )
        self._trainer, self._share, self._limit = trainer, share, limit
        self.store = Aggregate(capacity)

    def ride_along(self, inputs: dict[str, Any]) -> dict[str, Tensor] | None:
        """Past rollouts for this micro-batch, as tensors; ``None`` while there are none."""
        trainer = self._trainer
        count = max(round(self._share * len(inputs["completion_ids"])), 1)
        where = (trainer.args.seed, trainer.state.global_step, trainer.micro_step, trainer.accelerator.process_index)
        rng = random.Random(f"{where}-replay")
        pasts = self.store.draw(count, rng)
        if not pasts:
            return None
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        batch = padded(pasts, tokenizer.pad_token_id)
        return {name: x.to(inputs["completion_ids"].device) for name, x in batch.items()}

    @staticmethod
    def joined(inputs: dict[str, Any], past: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's inputs of fresh and past rollouts, fresh first, in one padded batch."""
        sides = []
        for name, left in (("prompt", True), ("completion", False)):
            for part in ("ids", "mask"):
                a, b = inputs[f"{name}_{part}"], past[f"{name}_{part}"]
                width = max(a.shape[1], b.shape[1])
                sides.append(torch.cat([_to_width(x, width, left) for x in (a, b)]))
        return completion_inputs(*sides)

    def loss(self, hidden: Tensor, head: Head, past: dict[str, Tensor], weights: Tensor) -> Tensor:
        """Σ weights · asked · reach · CE over past states, for the student's states (R, L, H) of ``joined``.

        Args:
            weights: (R, L), what each token's loss is divided by.
        """
        trainer = self._trainer
        # Joined to longer completions, these are padded on the right: their states begin where all completions do.
        states, tokens, mask = hidden, past["completion_ids"], past["mask"]
        options = {"mask": mask, "temperature": trainer.temperature}
        with torch.no_grad():
            now = token_scores(states.detach(), head, None, None, tokens, **options).student_logp
        count = past["asked"] * reach(now, past["logp"], mask, self._limit)
        trainer.log_metric("replay/reach", float(count.sum() / past["asked"].sum().clamp(min=1e-9)))
        trainer.log_metric("replay/rollouts", len(self.store))
        sparse = SparseTeacher(past["tokens"], past["weights"], past["asked"] > 0, self._tail)
        loss, _ = fused_loss(states, head, None, None, tokens, sd_weight=count * weights, sparse=sparse, **options)
        return loss

    @property
    def _tail(self) -> bool:
        return bool(self._trainer.marker.access.gives != "samples")

    @torch.no_grad()
    def keep(self, inputs: dict[str, Any], scores: TokenScores, mask: Tensor, student_head: Head) -> None:
        """Enter this micro-batch's marked rollouts."""
        kept = []
        for row in inputs["has_teacher"].nonzero().squeeze(1).tolist():
            length = int(inputs["completion_mask"][row].sum())
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            if "named_tokens" in inputs:
                tokens, weights = inputs["named_tokens"][row, :length], inputs["named_logp"][row, :length]
                asked = inputs["asked"][row, :length]
            else:
                logits = self._trainer.marker.head(student_head).logits(inputs["teacher_states"][row])
                tokens, weights = named(
                    logits / self._trainer.temperature, gives="topk", top_k=TOP_K, samples=1, seed=0
                )
                asked = mask[row, :length].float()
            parts = (prompt, inputs["completion_ids"][row, :length], mask[row, :length])
            kept.append(
                Past(*(x.cpu().clone() for x in (*parts, scores.student_logp[row, :length], tokens, weights, asked)))
            )
        self.store.add(kept)

    def save(self, folder: Path) -> None:
        torch.save(self.store.state_dict(), folder / f"replay_{self._trainer.accelerator.process_index}.pt")

    def load(self, folder: Path) -> None:
        """Raises ``ValueError`` where the checkpoint was written without a replay store."""
        path = folder / f"replay_{self._trainer.accelerator.process_index}.pt"
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, this checkpoint was written without replay_capacity; leave it out to resume"
            )
        self.store.load_state_dict(torch.load(path, map_location="cpu"))


def fresh_and_past(
    hidden: Tensor, fresh: tuple[int, int], past: dict[str, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """The states (B,T,H) of ``fresh`` = (B, T) rollouts and of the past ones, of the joined batch's (B+R, L, H)."""
    rows, length = fresh
    if past is None:
        return at_completion(hidden, length), None
    longest = max(length, past["completion_ids"].shape[1])
    states = at_completion(hidden, longest)
    return states[:rows, :length], states[rows:, : past["completion_ids"].shape[1]]


def _to_width(tensor: Tensor, width: int, left: bool) -> Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing))
