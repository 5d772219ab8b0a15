"""Scores of N tokens under one or two models, and their gradient, tile by tile.

A tile is a few hundred tokens. Its logits exist for the whole vocabulary, (V, n) and never more, in buffers that
every tile uses again, so the memory depends on neither the number of tokens nor V. Where there is room, the first tile stores
the student's logits in dhead: nothing is written there before that tile's gradient is known, and a row of dhead has room
for H tokens. Work on a tile is two sweeps over blocks of the vocabulary, each block small enough to stay in the
processor's cache between the matrix product and the arithmetic after it:

1. logits → per block the sums from which all scores follow, and what the second sweep needs;
2. once the tile's scores are known, and from them each token's dL/dlogp and dL/ddivergence: dL/dlogits of a block, and at
   once its two products, dhidden and dhead.

The vocabulary is the *first* axis: then all three products read their operands as they lie in memory, and what
belongs to a token is a row vector that broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .divergences import TileSums, divergence_class
from .rows import Gradients, Group, ModelRows, RowScores
from .sums import Sums, add_product, operand, product_dtype
from .threads import run_in_threads
from .types import DivergenceSettings
from .workspace import Layout, Workspace, rows_of_logits

TokenGradients = Callable[[slice, RowScores, bool], tuple[Tensor, Tensor | None]]
"""(rows of a tile, scores of all tokens up to there, whether they have a teacher) → (dL/dlogp, dL/ddivergence or ``None``
without a teacher), (n,) each."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of them is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sweep(
    student: ModelRows,
    groups: Sequence[Group],
    tokens: Tensor,
    settings: DivergenceSettings,
    token_gradients: TokenGradients | None = None,
    gradients: Gradients | None = None,
    *,
    scores_first: bool = False,
) -> RowScores:
    """Scores of the N tokens of all groups, in their order; with ``token_gradients`` and ``gradients`` also the gradients.

    ``token_gradients`` is called once per tile, after the tile's scores were written to the tensors that are returned.
    ``scores_first``: not before the scores of all tokens are. Only where ``fits_at_once``.
    """
    backward = token_gradients is not None and gradients is not None
    acc = accumulation_dtype(student.hidden, student.weight)
    scores = RowScores(*torch.zeros(len(RowScores._fields), tokens.shape[0], dtype=acc, device=tokens.device))
    unwritten = None if gradients is None else gradients.weight  # dhead, until the first gradient is added to it
    waiting: list[tuple[Tile, slice, bool]] = []
    last = 0
    for group in groups:
        first, last = last, last + group.n_rows
        if not group.n_rows:
            continue
        tile = Tile(student, group, settings, backward, acc, unwritten)
        if unwritten is not None and tile.space.aliased_dhead is None:
            unwritten.zero_()
        unwritten = None
        start = first
        for height in tile.space.layout.heights:
            rows = slice(start, start + height)
            start = rows.stop
            tile.score(rows, slice(rows.start - first, rows.stop - first), tokens[rows], scores)
            waiting.append((tile, rows, group.teacher is not None))
            if not scores_first:
                _add_waiting(waiting, scores, token_gradients, gradients)
    _add_waiting(waiting, scores, token_gradients, gradients)
    if unwritten is not None:
        unwritten.zero_()
    return scores


def _add_waiting(
    waiting: list[tuple[Tile, slice, bool]],
    scores: RowScores,
    token_gradients: TokenGradients | None,
    gradients: Gradients | None,
) -> None:
    """Make the second sweep of the tiles that wait for it."""
    for tile, rows, has_teacher in waiting:
        if token_gradients is not None and gradients is not None:
            tile.add_gradients(*token_gradients(rows, scores, has_teacher), gradients)
    waiting.clear()


def fits_at_once(student: ModelRows, groups: Sequence[Group], settings: DivergenceSettings, dhead: bool) -> bool:
    """Whether the logits of all tokens fit in the memory of one tile. ``dhead``: whether the head gets a gradient."""
    acc = accumulation_dtype(student.hidden, student.weight)
    room = rows_of_logits(student.weight.shape[0], acc, student.weight.device)
    for group in groups:
        if not group.n_rows:
            continue
        layout = layout_of(student, group, settings, True, acc, dhead)
        if len(layout.heights) > 1:
            return False
        room -= layout.width
        dhead = False  # it can store the first group's logits only
    return room >= 0


def layout_of(
    student: ModelRows, group: Group, settings: DivergenceSettings, backward: bool, acc: torch.dtype, dhead: bool
) -> Layout:
    """The tiles of a group. ``dhead``: whether dhead exists and holds no gradient yet."""
    vocabulary, width = student.weight.shape
    kind = divergence_class(settings, group.teacher, vocabulary)
    return Layout.of(
        group.n_rows,
        vocabulary,
        columns=kind.columns + (backward and student.softcap is not None),
        scratch=kind.scratch,
        keep=backward or kind.keeps_logits,
        dhead_width=width if dhead and kind.reads_by_block else None,
        dtype=acc,
        device=student.weight.device,
    )


class Tile:
    """The two sweeps, for one tile after the other of a group."""

    def __init__(
        self,
        student: ModelRows,
        group: Group,
        settings: DivergenceSettings,
        backward: bool,
        acc: torch.dtype,
        dhead: Tensor | None = None,
    ) -> None:
        """``dhead``: (V, H), if nothing has been added to it yet."""
        self.student, self.backward, self.acc = student, backward, acc
        self.teacher = group.teacher if isinstance(group.teacher, ModelRows) else None
        layout = layout_of(student, group, settings, backward, acc, dhead is not None)
        self.space = Workspace(layout, dhead, acc, student.weight.device)
        kind = divergence_class(settings, group.teacher, layout.vocabulary)
        self.divergence = kind(settings, self.space, group.teacher, backward)

    # -- first sweep --------------------------------------------------------------------------------------------------

    def score(self, rows: slice, group_rows: slice, tokens: Tensor, scores: RowScores) -> None:
        """Fill ``scores[rows]``; ``group_rows`` are the same rows counted from the group's first. Leaves in the workspace
        what ``add_gradients`` needs."""
        self.rows, self.tokens = rows, tokens
        n, student, teacher, space = tokens.shape[0], self.student, self.teacher, self.space
        blocks = space.begin(n)
        self.hidden = student.hidden[rows]
        hidden = operand(self.hidden, student.dtype, self.acc)
        s = Sums.empty(blocks, n, space.device, self.acc)
        t = teacher_hidden = None
        if teacher is not None:
            teacher_hidden = operand(teacher.hidden[group_rows], teacher.dtype, self.acc)
            t = Sums.empty(blocks, n, space.device, self.acc)

        def part(thread: int) -> None:
            for b, start, stop in space.blocks(thread):
                z, local = space.kept(0, start, stop, thread), tokens - start
                self._logits(student, hidden, start, stop, z, self._softcap_block(start, stop))
                self.divergence.add_student_block(s, b, z, local, thread)
                if teacher is not None and teacher_hidden is not None and t is not None:
                    u = space.kept(1, start, stop, thread)
                    self._logits(teacher, teacher_hidden, start, stop, u, None)
                    self.divergence.add_teacher_block(s, t, b, z, u, local, thread)

        run_in_threads(part, space.threads)
        self.p = s.finish()
        scores.student_logp[rows], scores.student_entropy[rows] = self.p.logp, self.p.entropy
        tile = TileSums(s, self.p, t, None if t is None else t.finish(), tokens, group_rows)
        of_teacher = self.divergence.teacher_scores(tile)
        if of_teacher is not None:
            scores.teacher_logp[rows], scores.teacher_entropy[rows], scores.divergence[rows] = of_teacher

    def _softcap_block(self, start: int, stop: int) -> Tensor | None:
        """Where the soft cap's derivative is kept: the last column."""
        if not self.backward or self.student.softcap is None:
            return None
        return self.space.kept(self.divergence.columns, start, stop)

    def _logits(
        self, model: ModelRows, hidden: Tensor, start: int, stop: int, out: Tensor, derivative: Tensor | None
    ) -> None:
        """Fill ``out`` with a block of logits, and ``derivative`` with that of the soft cap."""
        weight = operand(model.weight[start:stop], model.dtype, self.acc)
        if weight.dtype == out.dtype:
            torch.mm(weight, hidden.t(), out=out)
        else:
            torch.mm(weight, hidden.t(), out_dtype=out.dtype, out=out)
        if model.bias is not None:
            out.add_(model.bias[start:stop].unsqueeze(1))
        factor = model.scale / (model.softcap or model.temperature)
        if factor != 1.0:
            out.mul_(factor)
        if model.softcap is not None:
            out.tanh_()
            if derivative is not None:
                torch.mul(out, out, out=derivative).neg_().add_(1.0)
            out.mul_(model.softcap / model.temperature)

    # -- second sweep -------------------------------------------------------------------------------------------------

    def add_gradients(self, by_logp: Tensor, by_divergence: Tensor | None, gradients: Gradients) -> None:
        """Add this tile's share to ``gradients``, given dL/dlogp and dL/ddivergence, (n,) each."""
        model, space = self.student, self.space
        by_logp = by_logp * (model.scale / model.temperature)
        if by_divergence is not None:
            by_divergence = by_divergence * (model.scale / model.temperature)
        self.divergence.set_token_gradients(by_logp, by_divergence)
        # dL/dlogits spans too many orders of magnitude for float16.
        narrow = torch.bfloat16 if model.dtype == torch.bfloat16 else self.acc
        hidden = operand(self.hidden, model.dtype, self.acc).to(product_dtype(narrow, space.device, self.acc))
        overwrite = space.aliased_dhead is not None  # what dhead holds are this tile's logits
        d_hidden = None if gradients.hidden is None else gradients.hidden[self.rows]

        def part(thread: int) -> Tensor | None:
            own = d_hidden if thread == 0 or d_hidden is None else torch.zeros_like(d_hidden)
            for b, start, stop in space.blocks(thread):
                grad = self.divergence.logit_gradient(b, start, stop, thread)
                derivative = self._softcap_block(start, stop)
                if derivative is not None:
                    grad.mul_(derivative)
                if gradients.bias is not None:
                    gradients.bias[start:stop] += grad.sum(1)
                grad = grad.to(hidden.dtype)
                if own is not None:
                    weight = operand(model.weight[start:stop], model.dtype, self.acc).to(hidden.dtype)
                    add_product(own, grad.t(), weight)
                if gradients.weight is not None:
                    add_product(gradients.weight[start:stop], grad, hidden, overwrite=overwrite)
            return own

        _, *others = run_in_threads(part, space.threads)
        for other in others:
            if d_hidden is not None and other is not None:
                d_hidden += other
        space.release_dhead()
        self._add_sampled(by_logp, d_hidden, gradients)

    def _add_sampled(self, by_logp: Tensor, d_hidden: Tensor | None, gradients: Gradients) -> None:
        """The share of the sampled tokens' indicator: for each token one row of the head, and for that row the token's
        hidden state."""
        model = self.student
        if model.softcap is not None:
            by_logp = by_logp * (1.0 - (self.p.sampled * (model.temperature / model.softcap)).square())
        if d_hidden is not None:
            weight = operand(model.weight[self.tokens], model.dtype, self.acc).to(self.acc)
            d_hidden.addcmul_(weight, by_logp.unsqueeze(1))
        if gradients.weight is not None:
            hidden = operand(self.hidden, model.dtype, self.acc).to(self.acc)
            gradients.weight.index_add_(0, self.tokens, hidden * by_logp.unsqueeze(1))
        if gradients.bias is not None:
            gradients.bias.index_add_(0, self.tokens, by_logp)
