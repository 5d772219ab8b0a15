"""The engine under ``ops.scores``: per-token statistics of one or two vocabulary distributions, and their gradient,
tile by tile.

A tile is a few hundred tokens. Its logits exist for the whole vocabulary, (V, n) and never more, in buffers that
every tile uses again; so the memory depends on neither the number of tokens nor V. The first tile keeps the student's
logits where dhead is going to be: nothing is written there before that tile's gradient is known, and a row of dhead has
room for H tokens. Work on a tile goes in two sweeps over blocks of the vocabulary, each small enough to stay in the
processor's cache between the matrix product and the arithmetic after it:

1. logits → what has to be kept of them, and per block the sums from which all scores follow;
2. once the tile's scores are known, and from them each token's dL/dlogp and dL/ddivergence: kept → dL/dlogits, and
   from that block at once its two products, dhidden and dhead.

The vocabulary is the *first* axis: then all three products read their operands as they lie in memory, and what
belongs to a token is a row vector that broadcasts.

The gradient by the logits z, with p the student's and q the teacher's distribution and d the sampled token's indicator:

    logp        d - p
    forward_ce  p - q                             (forward_kl the same)
    reverse_kl  p·(log p - log q - reverse_kl)
    js          (1-α)·p·(log p - log m - KL(p‖m))

So dL/dz is either kept_1·x + kept_2·y or kept_1·(x + kept_2·y), x and y per token and block, but for d, whose share
is two sparse updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..divergence import FLOOR, add_tail, between, renormalise
from .sums import Sums, add_product, dot, operand, product_dtype
from .threads import side_by_side
from .workspace import Workspace

Slopes = Callable[[slice, "RowScores", bool], tuple[Tensor, Tensor | None]]
"""(tokens of the tile, all scores so far, whether a teacher marked them) → (dL/dlogp, dL/ddivergence), each (n,)."""


@dataclass(frozen=True)
class Side:
    """One model's end: z = softcap(scale·(W h + b)) / temperature for the tokens of interest, N of them."""

    hidden: Tensor
    """(N, H)."""
    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,), finite."""
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype
    """What the products' operands are rounded to: the inputs' own type, or autocast's."""


@dataclass(frozen=True)
class Named:
    """A teacher known by some tokens alone: what it would write after each of M states of interest."""

    tokens: Tensor
    """(M, K) ids."""
    logp: Tensor
    """(M, K) their log-weights; -inf where a state has fewer."""
    tail: bool
    """Whether the weights' rest is the mass of all other tokens, one further bucket; else they sum to 1 by themselves."""


@dataclass(frozen=True)
class Measure:
    """Which divergence, over which part of the vocabulary."""

    kind: str
    alpha: float
    support: str
    k: int
    tail: bool


class RowScores(NamedTuple):
    """(N,) each; the teacher's are 0 for tokens without one."""

    student_logp: Tensor
    teacher_logp: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    divergence: Tensor


@dataclass
class Gradients:
    """Sums over all tiles, in the accumulation type; ``None`` where not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    """Contiguous; what it holds at first does not matter."""
    bias: Tensor | None


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if anything is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


Teachers = tuple[tuple[int, "Side | Named | None"], ...]
"""(number of tokens, who marks them), in the tokens' order."""


def sweep(
    student: Side,
    teachers: Teachers,
    tokens: Tensor,
    measure: Measure,
    slopes: Slopes | None,
    gradients: Gradients | None,
) -> RowScores:
    """Scores of N tokens, in their order; with ``slopes``, also the gradients (added in place).

    ``slopes`` is asked tile by tile, and may read the scores of all tokens up to there: they are the returned tensors.
    """
    acc = accumulation_dtype(student.hidden, student.weight)
    scores = RowScores(*torch.zeros(len(RowScores._fields), tokens.shape[0], dtype=acc, device=tokens.device))
    blank = None if gradients is None else gradients.weight
    last = 0
    for count, by in teachers:
        first, last = last, last + count
        if not count:
            continue
        tile = Tile(student, by, measure, count, slopes is not None and gradients is not None, acc, blank)
        if blank is not None and tile.space.home is None:
            blank.zero_()
        blank = None
        low = first
        for height in tile.space.heights:
            rows = slice(low, low + height)
            low = rows.stop
            tile.score(rows, slice(rows.start - first, rows.stop - first), tokens[rows], scores)
            if slopes is not None and gradients is not None:
                tile.push_back(*slopes(rows, scores, by is not None), gradients)
    if blank is not None:
        blank.zero_()
    return scores


class Tile:
    """The two sweeps."""

    def __init__(
        self,
        student: Side,
        teacher: Side | Named | None,
        measure: Measure,
        n_tokens: int,
        backward: bool,
        acc: torch.dtype,
        blank: Tensor | None = None,
    ) -> None:
        """``blank``: dhead, if nothing has been added to it yet."""
        self.student, self.measure, self.backward, self.acc = student, measure, backward, acc
        self.teacher = teacher if isinstance(teacher, Side) else None
        self.named = teacher if isinstance(teacher, Named) else None
        self.device, self.vocabulary = student.weight.device, student.weight.shape[0]
        if self.named is not None:
            self.kind = "named"
        elif self.teacher is None:
            self.kind = "none"
        else:
            whole = measure.support == "full" or measure.k >= self.vocabulary
            self.kind = measure.kind if whole else "topk"
        # Nothing is kept between the sweeps when the scores are one sweep's sums and no gradient is asked for.
        keep = backward or self.kind in ("js", "topk", "named")
        self.sides = 1 if self.teacher is None else 2
        self.space = Workspace(
            n_tokens,
            self.vocabulary,
            columns=self.sides + (backward and student.softcap is not None),
            scratch=3 if self.kind in ("js", "topk", "named") else self.sides,
            keep=keep,
            blank=None if self.kind in ("topk", "named") else blank,  # these look at all blocks at once
            dtype=acc,
            device=self.device,
        )

    def _slope_block(self, start: int, stop: int) -> Tensor | None:
        capped = self.backward and self.student.softcap is not None
        return self.space.kept(self.sides, start, stop) if capped else None

    # -- first sweep --------------------------------------------------------------------------------------------------

    def score(self, rows: slice, own: slice, tokens: Tensor, scores: RowScores) -> None:
        """Fill ``scores[rows]``, the teacher's tokens ``own``, and leave in the buffers what ``push_back`` needs."""
        self.span, self.tokens, self.n = rows, tokens, tokens.shape[0]
        blocks, student, teacher = self.space.begin(self.n), self.student, self.teacher
        self.hidden = student.hidden[rows]
        hidden = operand(self.hidden, student.dtype, self.acc)
        s = Sums.empty(blocks, self.n, self.device, self.acc)
        if teacher is None:

            def alone(lane: int) -> None:
                for b, start, stop in self.space.blocks(lane):
                    z = self.space.kept(0, start, stop, lane)
                    self._logits(student, hidden, start, stop, z, self._slope_block(start, stop))
                    self._sum_block(s, b, start, z, 0, lane)

            side_by_side(alone, self.space.lanes)
            self.s = s.finish()
            if self.named is not None:
                self._mark_by_names(self.named, rows, own, scores)
        else:
            teacher_hidden = operand(teacher.hidden[own], teacher.dtype, self.acc)
            t = Sums.empty(blocks, self.n, self.device, self.acc)

            def both(lane: int) -> None:
                for b, start, stop in self.space.blocks(lane):
                    z, u = (self.space.kept(i, start, stop, lane) for i in (0, 1))
                    self._logits(student, hidden, start, stop, z, self._slope_block(start, stop))
                    shifted = self._sum_block(s, b, start, z, 0, lane)
                    self._logits(teacher, teacher_hidden, start, stop, u, None)
                    shifted_u = self._sum_block(t, b, start, u, 1, lane)
                    if self.kind in ("forward_ce", "forward_kl"):
                        dot(u, shifted, into=shifted, out=t.cross[b])
                    elif self.kind == "reverse_kl":
                        if self.backward:
                            torch.sub(shifted, shifted_u, out=u)
                        dot(z, shifted_u, into=shifted_u, out=s.cross[b])

            side_by_side(both, self.space.lanes)
            self.s, self.t = s.finish(), t.finish()
            scores.teacher_logp[rows], scores.teacher_entropy[rows] = self.t.logp, self.t.entropy
            self.value = self._divergence(s, t)
            scores.divergence[rows] = self.value
        scores.student_logp[rows], scores.student_entropy[rows] = self.s.logp, self.s.entropy

    def _logits(self, side: Side, hidden: Tensor, start: int, stop: int, out: Tensor, slope: Tensor | None) -> None:
        weight = operand(side.weight[start:stop], side.dtype, self.acc)
        if weight.dtype == out.dtype:
            torch.mm(weight, hidden.t(), out=out)
        else:
            torch.mm(weight, hidden.t(), out_dtype=out.dtype, out=out)
        if side.bias is not None:
            out.add_(side.bias[start:stop].unsqueeze(1))
        factor = side.scale / (side.softcap or side.temperature)
        if factor != 1.0:
            out.mul_(factor)
        if side.softcap is not None:
            out.tanh_()
            if slope is not None:
                torch.mul(out, out, out=slope).neg_().add_(1.0)
            out.mul_(side.softcap / side.temperature)

    def _sum_block(self, sums: Sums, b: int, start: int, z: Tensor, side: int, lane: int) -> Tensor:
        """One block's sums. Returns z less its largest, where that is needed, and leaves e^ of it in z's place, unless z
        itself is."""
        length = z.shape[0]
        torch.amax(z, 0, out=sums.top[b])
        local = self.tokens - start
        inside = (local >= 0) & (local < length)
        sampled = z.gather(0, local.clamp(0, length - 1).unsqueeze(0)).squeeze(0)
        sums.sampled[b] = torch.where(inside, sampled, 0.0)
        shifted = self.space.scratch(side, length, lane)
        torch.sub(z, sums.top[b], out=shifted)
        if self.kind in ("js", "topk", "named"):
            mass = into = self.space.scratch(2, length, lane)
        else:  # products go where nothing is needed: for reverse KL that is not the teacher's scratch
            mass = z
            into = z if self.kind == "reverse_kl" and side else self.space.scratch(self.sides - 1, length, lane)
        torch.exp(shifted, out=mass)
        torch.sum(mass, 0, out=sums.mass[b])
        dot(mass, shifted, into=into, out=sums.tilt[b])
        return shifted

    def _divergence(self, s: Sums, t: Sums) -> Tensor:
        if self.kind in ("forward_ce", "forward_kl"):
            expected = (self.t.share * (t.cross + (s.top - self.s.peak) * t.mass)).sum(0)
            cross_entropy = self.s.log_mass - expected
            return cross_entropy if self.kind == "forward_ce" else cross_entropy - self.t.entropy
        if self.kind == "reverse_kl":
            expected = (self.s.share * (s.cross + (t.top - self.t.peak) * s.mass)).sum(0)
            return self.t.log_mass - expected - self.s.entropy
        return self._jensen_shannon() if self.kind == "js" else self._over_topk()

    def _jensen_shannon(self) -> Tensor:
        """α·KL(q‖m) + (1-α)·KL(p‖m). Leaves p and log p - log m where the logits were."""
        alpha, tiny = self.measure.alpha, torch.finfo(self.acc).tiny

        def part(lane: int) -> Tensor:
            kl = torch.zeros(2, self.n, dtype=self.acc, device=self.device)
            for _, start, stop in self.space.blocks(lane):
                p, q, log_m = (self.space.scratch(i, stop - start, lane) for i in range(3))
                log_p, log_q = (self.space.kept(i, start, stop) for i in (0, 1))
                torch.exp(log_p.sub_(self.s.lse), out=p)
                torch.exp(log_q.sub_(self.t.lse), out=q)
                # Where both have underflowed the mixture is 0 and so is its share: any finite logarithm will do.
                torch.lerp(p, q, alpha, out=log_m).clamp_(min=tiny).log_()
                kl[1] += dot(q, log_q.sub_(log_m), into=q)
                torch.sub(log_p, log_m, out=log_q)
                if self.backward:
                    log_p.copy_(p)
                kl[0] += dot(p, log_q, into=p)
            return kl

        kl = torch.stack(side_by_side(part, self.space.lanes)).sum(0)
        self.student_kl = kl[0]
        return alpha * kl[1] + (1.0 - alpha) * kl[0]

    def _over_topk(self) -> Tensor:
        """The divergence over the likeliest k tokens: small enough to leave its gradient to autograd."""
        z, u = (self.space.kept(i, 0, self.vocabulary) for i in (0, 1))
        supporting = z if self.measure.support == "student_topk" else u
        self.chosen = supporting.topk(self.measure.k, 0, sorted=False).indices
        close = add_tail if self.measure.tail else renormalise
        return self._over_chosen(close((u.gather(0, self.chosen) - self.t.lse).t()), close)

    def _mark_by_names(self, named: Named, rows: slice, own: slice, scores: RowScores) -> None:
        """The divergence to a teacher of whom some tokens are known. Its log-probability of a token it did not name is that
        of all such tokens together where they are a bucket, and 0 where they are not; so is the entropy it has then."""
        logp, absent = named.logp[own].to(self.acc), named.logp[own] == -torch.inf
        self.chosen = named.tokens[own].t().masked_fill(absent.t(), 0)
        # A token not there weighs nothing: e^-FLOOR is 0, and 0·FLOOR too, where -inf would give NaN.
        teacher = logp.masked_fill(absent, -FLOOR)
        if named.tail:
            teacher = add_tail(teacher)
            hit = (named.tokens[own] == self.tokens.unsqueeze(1)) & ~absent
            known = torch.where(hit, teacher[:, :-1], -FLOOR).amax(1)
            scores.teacher_logp[rows] = torch.where(hit.any(1), known, teacher[:, -1])
            scores.teacher_entropy[rows] = -(teacher.exp() * teacher).sum(1)
        close = (
            (lambda student: add_tail(student.masked_fill(absent, -FLOOR))) if named.tail else (lambda student: student)
        )
        scores.divergence[rows] = self._over_chosen(teacher, close)

    def _over_chosen(self, teacher: Tensor, close: Callable[[Tensor], Tensor]) -> Tensor:
        """The divergence over ``chosen`` (k, n) tokens, both sides closed to distributions (n, k or k+1)."""
        z = self.space.kept(0, 0, self.vocabulary)
        with torch.enable_grad():
            self.leaves = z.gather(0, self.chosen).requires_grad_(), self.s.lse.clone().requires_grad_()
            student = (self.leaves[0] - self.leaves[1]).t()
            self.over_chosen = between(close(student), teacher, self.measure.kind, alpha=self.measure.alpha)
        return self.over_chosen.detach()

    # -- second sweep -------------------------------------------------------------------------------------------------

    def push_back(self, by_logp: Tensor, by_divergence: Tensor | None, gradients: Gradients) -> None:
        """Add this tile's share to ``gradients``, given dL/dlogp and dL/ddivergence, each (n,)."""
        side = self.student
        by_logp = by_logp * (side.scale / side.temperature)
        if by_divergence is not None:
            by_divergence = by_divergence * (side.scale / side.temperature)
        if self.kind in ("topk", "named"):
            self._settle_chosen(by_logp, by_divergence)
            x = y = None
        else:
            x, y = self._coefficients(by_logp, by_divergence)
        # dL/dlogits spans too many orders of magnitude for float16.
        narrow = torch.bfloat16 if side.dtype == torch.bfloat16 else self.acc
        hidden = operand(self.hidden, side.dtype, self.acc).to(product_dtype(narrow, self.device, self.acc))
        anew = self.space.home is not None
        d_hidden = None if gradients.hidden is None else gradients.hidden[self.span]

        def part(lane: int) -> Tensor | None:
            own = d_hidden if lane == 0 or d_hidden is None else torch.zeros_like(d_hidden)
            for b, start, stop in self.space.blocks(lane):
                grad = self._by_logits(None if x is None else x[b], None if y is None else y[b], start, stop, lane)
                if gradients.bias is not None:
                    gradients.bias[start:stop] += grad.sum(1)
                grad = grad.to(hidden.dtype)
                if own is not None:
                    weight = operand(side.weight[start:stop], side.dtype, self.acc).to(hidden.dtype)
                    add_product(own, grad.t(), weight)
                if gradients.weight is not None:
                    add_product(gradients.weight[start:stop], grad, hidden, anew)
            return own

        _, *others = side_by_side(part, self.space.lanes)
        for other in others:
            if d_hidden is not None and other is not None:
                d_hidden += other
        self.space.home = None
        self._push_back_sampled(by_logp, d_hidden, gradients)

    def _coefficients(self, by_logp: Tensor, by_divergence: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x and y of the module's docstring, each (blocks, n)."""
        if by_divergence is None:
            return -by_logp * self.s.share, None
        if self.kind in ("forward_ce", "forward_kl"):
            return (by_divergence - by_logp) * self.s.share, -by_divergence * self.t.share
        if self.kind == "reverse_kl":
            offset = self.s.top - self.t.top - self.s.lse + self.t.lse - self.value
            return (by_divergence * offset - by_logp) * self.s.share, by_divergence * self.s.share
        rate = (1.0 - self.measure.alpha) * by_divergence
        shape = self.s.share.shape
        return (-by_logp - rate * self.student_kl).expand(shape), rate.expand(shape)

    def _settle_chosen(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        """dL/dlogits in place of the kept logits, where the divergence looks at chosen tokens alone: p·x, and what autograd
        found for those tokens."""
        by_logits, by_lse = torch.autograd.grad(self.over_chosen, self.leaves, by_divergence)
        for _, start, stop in self.space.blocks():
            self.space.kept(0, start, stop).sub_(self.s.lse).exp_().mul_(by_lse - by_logp)
        self.space.kept(0, 0, self.vocabulary).scatter_add_(0, self.chosen, by_logits)

    def _by_logits(self, x: Tensor | None, y: Tensor | None, start: int, stop: int, lane: int) -> Tensor:
        """One block of dL/dlogits but for the sampled token's indicator, from what was kept."""
        kept, grad = self.space.kept(0, start, stop), self.space.scratch(0, stop - start, lane)
        if x is None:
            grad = kept  # settled before, over the whole vocabulary
        elif y is None:
            torch.mul(kept, x, out=grad)
        elif self.kind in ("reverse_kl", "js"):
            torch.mul(kept, self.space.kept(1, start, stop).mul_(y).add_(x), out=grad)
        else:
            torch.mul(kept, x, out=grad).addcmul_(self.space.kept(1, start, stop), y)
        slope = self._slope_block(start, stop)
        return grad if slope is None else grad.mul_(slope)

    def _push_back_sampled(self, by_logp: Tensor, d_hidden: Tensor | None, gradients: Gradients) -> None:
        """The indicator's share: one row of the head for each token, one token's hidden state for its row of the
        head."""
        side = self.student
        if side.softcap is not None:
            by_logp = by_logp * (1.0 - (self.s.sampled * (side.temperature / side.softcap)).square())
        if d_hidden is not None:
            d_hidden.addcmul_(
                operand(side.weight[self.tokens], side.dtype, self.acc).to(self.acc), by_logp.unsqueeze(1)
            )
        if gradients.weight is not None:
            hidden = operand(self.hidden, side.dtype, self.acc).to(self.acc)
            gradients.weight.index_add_(0, self.tokens, hidden * by_logp.unsqueeze(1))
        if gradients.bias is not None:
            gradients.bias.index_add_(0, self.tokens, by_logp)
