"""DAgger's aggregation: past rollouts join the student's forward and are learned from by the local term alone.

Their future credit is left out, because the rest of a past rollout was not sampled by today's policy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from errata.experts.access import sparse_distribution
from errata.experts.aggregate import Aggregate, PastRollout, pad_rollouts, prefix_importance
from errata.ops.scores import Head, ModelStates, SparseTeacher, Streams, TokenScores, fused_loss, token_scores
from errata.training.batch import GenerationBatch, TokenBatch
from errata.training.forward import at_completion

TOP_K = 20
"""Tokens kept of a teacher whose whole distribution is known; the rest of its mass is one further bucket."""


@dataclass(frozen=True, slots=True)
class PastBatch:
    """R past rollouts as padded tensors, see ``errata.experts.aggregate.pad_rollouts``."""

    tokens: dict[str, Tensor]

    @property
    def length(self) -> int:
        return self.tokens["completion_ids"].shape[1]

    @property
    def mask(self) -> Tensor:
        """(R,T) bool: generated tokens."""
        return self.tokens["mask"]


class Replay:
    """Keeps each step's rollouts with their teacher's values, and adds some of the past ones to later losses.

    Args:
        capacity: rollouts kept, by each process.
        share: past rollouts for each fresh one.
        limit: largest importance weight of a past state.
        divergence: the method's; past rollouts teach by forward cross-entropy alone.
        tail: whether the rest of a stored distribution's mass is one further bucket (not so for samples).
        temperature: the run's.
    Raises:
        ValueError: a setting out of range, or another divergence.
    """

    def __init__(
        self, capacity: int, share: float, limit: float, *, divergence: str, tail: bool, temperature: float, pad: int
    ) -> None:
        if share <= 0 or limit <= 0:
            raise ValueError(f"replay_share: {share} and replay_limit {limit} must be positive")
        if divergence not in ("forward_ce", "forward_kl"):
            raise ValueError(
                f"replay_capacity: past answers teach by forward cross-entropy, not by {divergence}; "
                "use method: distil, or leave it out"
            )
        self._share, self._limit, self._tail, self._temperature, self._pad = share, limit, tail, temperature, pad
        self.store = Aggregate(capacity)

    def draw(self, fresh: TokenBatch, seed: str) -> PastBatch | None:
        """Past rollouts for a micro-batch; ``None`` while there are none. ``seed`` names its place in the run."""
        count = max(round(self._share * len(fresh)), 1)
        pasts = self.store.draw(count, random.Random(f"{seed}-replay"))
        if not pasts:
            return None
        return PastBatch({name: x.to(fresh.device) for name, x in pad_rollouts(pasts, self._pad).items()})

    @staticmethod
    def joined(fresh: TokenBatch, past: PastBatch) -> dict[str, Tensor]:
        """The student's inputs of fresh and past rollouts, fresh first, in one padded batch."""
        sides: list[Tensor] = []
        for name, left in (("prompt", True), ("completion", False)):
            for part in ("ids", "mask"):
                a, b = getattr(fresh, f"{name}_{part}"), past.tokens[f"{name}_{part}"]
                width = max(a.shape[1], b.shape[1])
                sides.append(torch.cat([_to_width(x, width, left) for x in (a, b)]))
        prompt_ids, prompt_mask, ids, mask = sides
        return {
            "input_ids": torch.cat([prompt_ids, ids], dim=1),
            "attention_mask": torch.cat([prompt_mask, mask], dim=1),
        }

    @staticmethod
    def split(hidden: Tensor, fresh: TokenBatch, past: PastBatch) -> tuple[Tensor, Tensor]:
        """The states (B,T,H) of the fresh and (R,T',H) of the past rollouts, of the joined batch's (B+R,L,H)."""
        rows, length = fresh.completion_ids.shape
        states = at_completion(hidden, max(length, past.length))
        return states[:rows, :length], states[rows:, : past.length]

    def loss(self, hidden: Tensor, head: Head, past: PastBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Σ weights · query weight · reach · CE over past states, and the sums that ``metrics`` takes.

        Args:
            hidden: (R,T',H), of ``split``.
            weights: (R,T'), what each token's loss is divided by.
        """
        t = past.tokens
        tokens, mask = t["completion_ids"], t["mask"]
        with torch.no_grad():
            now = token_scores(hidden.detach(), head, None, None, tokens, mask=mask, temperature=self._temperature)
        count = t["query_weight"] * prefix_importance(now.student_logp, t["logp"], mask, self._limit)
        reach = torch.stack([count.sum(), t["query_weight"].sum()])
        sparse = SparseTeacher(t["tokens"], t["weights"], t["query_weight"] > 0, self._tail)
        streams = Streams(None, None, count * weights)
        loss, _ = fused_loss(
            ModelStates(hidden, head), None, tokens, streams, mask=mask, sparse=sparse, temperature=self._temperature
        )
        return loss, reach

    def metrics(self, accelerator: Accelerator, reach: Tensor | None) -> dict[str, float]:
        """Of the past rollouts of all processes. Collective: call on every rank.

        Args:
            reach: of ``loss``; ``None`` where this process drew no past rollouts, as one without a teacher so far.
        """
        drawn = torch.zeros(2, device=accelerator.device) if reach is None else reach
        here = torch.cat([drawn, drawn.new_tensor([reach is not None, len(self.store)])])
        reached, queried, draws, stored = accelerator.reduce(here, reduction="sum")
        if not draws:
            return {}
        return {"replay/reach": float(reached / queried.clamp(min=1e-9)), "replay/rollouts": float(stored)}

    @torch.no_grad()
    def keep(self, batch: GenerationBatch, scores: TokenScores, teacher_head: Head | None) -> None:
        """Store this micro-batch's rollouts that have a teacher. ``teacher_head`` reads its hidden states, if it has any."""
        tokens, sparse = batch.tokens, batch.teacher.sparse
        kept = []
        for row in batch.teacher.has_teacher.nonzero().squeeze(1).tolist():
            length = int(tokens.completion_mask[row].sum())
            prompt = tokens.prompt_ids[row][tokens.prompt_mask[row].bool()]
            state = batch.teacher.states[row]
            if sparse is not None:
                ids, weights = sparse.tokens[row, :length], sparse.logp[row, :length]
                query_weight = sparse.query_weight[row, :length]
            else:
                assert state is not None
                assert teacher_head is not None
                logits = teacher_head.logits(state) / self._temperature
                ids, weights = sparse_distribution(logits, gives="topk", top_k=TOP_K, samples=1, seed=0)
                query_weight = tokens.mask[row, :length].float()
            parts = (prompt, tokens.completion_ids[row, :length], tokens.mask[row, :length])
            logp = scores.student_logp[row, :length]
            kept.append(PastRollout(*(x.cpu().clone() for x in (*parts, logp, ids, weights, query_weight))))
        self.store.add(kept)

    def save(self, folder: Path, rank: int) -> None:
        torch.save(self.store.state_dict(), folder / f"replay_{rank}.pt")

    def load(self, folder: Path, rank: int) -> None:
        """Raises ``ValueError`` where the checkpoint was written without a replay store."""
        path = folder / f"replay_{rank}.pt"
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, this checkpoint was written without replay_capacity; leave it out to resume"
            )
        self.store.load_state_dict(torch.load(path, map_location="cpu"))


def _to_width(tensor: Tensor, width: int, left: bool) -> Tensor:
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing))
