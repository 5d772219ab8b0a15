"""One class per divergence: its part of the two sweeps over the vocabulary.

The first sweep meets each block of the student's logits z and the teacher's logits u once, straight from the matrix product,
and collects sums from which the divergence's value follows. It leaves in the workspace's columns what the second sweep
needs for the gradient. With p the student's distribution, q the teacher's, m = (1-α)·p + α·q and e the sampled token's
indicator, the gradient by z is

    log-prob of the sampled token   e - p
    forward_ce, forward_kl          p - q
    reverse_kl                      p·(log p - log q - reverse_kl)
    js                              (1-α)·p·(log p - log m - KL(p‖m))

For a divergence Σ_a f(p_a, q_a) in general it is p·(g - Σ_a p_a·g_a) with g = ∂f/∂p. A per-entry clip sets g to 0 at the
entries it cuts, and changes nothing else. The engine adds the indicator's share itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..divergence import FLOOR, add_tail, between, renormalise
from .rows import ModelRows, SparseRows
from .sums import Distribution, Sums, dot
from .threads import run_in_threads
from .types import DivergenceSettings
from .workspace import Workspace


@dataclass
class TileSums:
    """The first sweep of one tile of n tokens."""

    student: Sums
    p: Distribution
    teacher: Sums | None
    """The teacher's sums and distribution, if all of its logits are known."""
    q: Distribution | None
    tokens: Tensor
    """(n,) sampled ids."""
    rows: slice
    """The tile's rows within its group."""


TeacherScores = tuple[Tensor, Tensor, Tensor]
"""(n,) each: teacher_logp, teacher_entropy, divergence."""


class Divergence:
    """The arithmetic of a group of tokens with the same kind of teacher; holds the state of one tile at a time."""

    columns: ClassVar[int] = 2
    """Columns of the workspace: the student's logits, and the teacher's."""
    scratch: ClassVar[int] = 2
    """Scratch blocks per thread."""
    keeps_logits: ClassVar[bool] = False
    """Whether the value needs the whole columns after the first sweep."""
    reads_by_block: ClassVar[bool] = True
    """False: column 0 is read as one whole array, and can't be stored in dhead."""

    def __init__(
        self,
        settings: DivergenceSettings,
        space: Workspace,
        teacher: ModelRows | SparseRows | None,
        backward: bool,
    ) -> None:
        self.settings, self.space, self.backward = settings, space, backward

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        """First sweep: block b of the student's logits (length, n). ``tokens``: as ``Sums.add_block``."""
        raise NotImplementedError

    def add_teacher_block(
        self, student: Sums, teacher: Sums, b: int, z: Tensor, u: Tensor, tokens: Tensor, thread: int
    ) -> None:
        """First sweep: block b of the teacher's logits u, right after ``add_student_block`` got z."""
        raise NotImplementedError

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        """The teacher's scores once the first sweep is done; ``None`` without a teacher."""
        raise NotImplementedError

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        """Begin the second sweep, given dL/dlogp and dL/ddivergence of each token, (n,)."""
        raise NotImplementedError

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        """Second sweep: block b of dL/dz without the sampled token's indicator, (length, n)."""
        raise NotImplementedError


class NoTeacher(Divergence):
    """Tokens with a student alone: log-probability and entropy."""

    columns = 1
    scratch = 1

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        own = self.space.scratch(0, len(z), thread)
        sums.add_block(b, z, tokens, shifted=own, exponential=z, products=own)

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        self.p = tile.p
        return None

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        self.x = -by_logp * self.p.share

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        out = self.space.scratch(0, stop - start, thread)
        return torch.mul(self.space.kept(0, start, stop), self.x[b], out=out)


class ForwardKL(Divergence):
    """-Σ q·log p, less the teacher's entropy for ``forward_kl``. Keeps e^z and e^u of each block."""

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        shifted, products = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        sums.add_block(b, z, tokens, shifted=shifted, exponential=z, products=products)

    def add_teacher_block(
        self, student: Sums, teacher: Sums, b: int, z: Tensor, u: Tensor, tokens: Tensor, thread: int
    ) -> None:
        shifted_z, shifted_u = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        teacher.add_block(b, u, tokens, shifted=shifted_u, exponential=u, products=shifted_u)
        dot(u, shifted_z, into=shifted_z, out=teacher.cross[b])

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        assert tile.teacher is not None and tile.q is not None
        self.p, self.q = tile.p, tile.q
        sums = tile.teacher
        expected = (self.q.share * (sums.cross + (self.p.top - self.p.peak) * sums.mass)).sum(0)
        value = self.p.log_mass - expected
        if self.settings.effective_kind == "forward_kl":
            value = value - self.q.entropy
        return self.q.logp, self.q.entropy, value

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        assert by_divergence is not None
        self.x, self.y = (by_divergence - by_logp) * self.p.share, -by_divergence * self.q.share

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        out = self.space.scratch(0, stop - start, thread)
        torch.mul(self.space.kept(0, start, stop), self.x[b], out=out)
        return out.addcmul_(self.space.kept(1, start, stop), self.y[b])


class ReverseKL(Divergence):
    """Σ p·(log p - log q). Keeps e^z and z - u of each block."""

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        shifted, products = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        sums.add_block(b, z, tokens, shifted=shifted, exponential=z, products=products)

    def add_teacher_block(
        self, student: Sums, teacher: Sums, b: int, z: Tensor, u: Tensor, tokens: Tensor, thread: int
    ) -> None:
        shifted_z, shifted_u = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        teacher.add_block(b, u, tokens, shifted=shifted_u, exponential=u, products=u)
        if self.backward:
            torch.sub(shifted_z, shifted_u, out=u)
        dot(z, shifted_u, into=shifted_u, out=student.cross[b])

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        assert tile.q is not None
        self.p, self.q = tile.p, tile.q
        sums = tile.student
        expected = (self.p.share * (sums.cross + (self.q.top - self.q.peak) * sums.mass)).sum(0)
        self.value = self.q.log_mass - expected - self.p.entropy
        return self.q.logp, self.q.entropy, self.value

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        assert by_divergence is not None
        offset = self.p.top - self.q.top - self.p.lse + self.q.lse - self.value
        self.x, self.y = (by_divergence * offset - by_logp) * self.p.share, by_divergence * self.p.share

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        out = self.space.scratch(0, stop - start, thread)
        ratio = self.space.kept(1, start, stop)
        return torch.mul(self.space.kept(0, start, stop), ratio.mul_(self.y[b]).add_(self.x[b]), out=out)


class ByEntry(Divergence):
    """A divergence whose terms need both normalised distributions: a pass over the kept logits follows the first sweep.

    ``add_entries`` gets the log-probabilities of a block. It adds to the (2, n) totals, and leaves p in the place of log p
    and g, up to the factor ``rate``, in the place of log q. ``totals[0]`` becomes Σ p·g.
    """

    scratch = 3
    keeps_logits = True

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        shifted, products = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        sums.add_block(b, z, tokens, shifted=shifted, exponential=products, products=products)

    def add_teacher_block(
        self, student: Sums, teacher: Sums, b: int, z: Tensor, u: Tensor, tokens: Tensor, thread: int
    ) -> None:
        self.add_student_block(teacher, b, u, tokens, thread)

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        p, q, n = tile.p, tile.q, len(tile.tokens)
        assert q is not None

        def part(thread: int) -> Tensor:
            totals = torch.zeros(2, n, dtype=self.space.dtype, device=self.space.device)
            for _, start, stop in self.space.blocks(thread):
                log_p, log_q = (self.space.kept(i, start, stop) for i in (0, 1))
                scratch = [self.space.scratch(i, stop - start, thread) for i in range(3)]
                self.add_entries(totals, log_p.sub_(p.lse), log_q.sub_(q.lse), *scratch)
            return totals

        self.totals = torch.stack(run_in_threads(part, self.space.threads)).sum(0)
        return q.logp, q.entropy, self.value()

    def add_entries(self, totals: Tensor, log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        """One block; a, b and c are scratch."""
        raise NotImplementedError

    def value(self) -> Tensor:
        """(n,) the divergence, of the totals."""
        return self.totals[1]

    @property
    def rate(self) -> float:
        """What g was left without."""
        return 1.0

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        assert by_divergence is not None
        self.y = self.rate * by_divergence
        self.x = -by_logp - self.y * self.totals[0]

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        out = self.space.scratch(0, stop - start, thread)
        g = self.space.kept(1, start, stop)
        return torch.mul(self.space.kept(0, start, stop), g.mul_(self.y).add_(self.x), out=out)


class JensenShannon(ByEntry):
    """α·KL(q‖m) + (1-α)·KL(p‖m), with g = (1-α)·log(p/m)."""

    def add_entries(self, totals: Tensor, log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        p, q, log_m = self.mixture(log_p, log_q, a, b, c)
        totals[1] += dot(q, log_q.sub_(log_m), into=q)
        torch.sub(log_p, log_m, out=log_q)
        if self.backward:
            log_p.copy_(p)
        totals[0] += dot(p, log_q, into=p)

    def mixture(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, log_m: Tensor) -> tuple[Tensor, ...]:
        """Fill p, q and log m."""
        torch.exp(log_p, out=p)
        torch.exp(log_q, out=q)
        # Where p and q underflow, m is 0 and the term too: any finite logarithm will do.
        torch.lerp(p, q, self.settings.alpha, out=log_m).clamp_(min=torch.finfo(p.dtype).tiny).log_()
        return p, q, log_m

    def value(self) -> Tensor:
        alpha = self.settings.alpha
        return alpha * self.totals[1] + (1.0 - alpha) * self.totals[0]

    @property
    def rate(self) -> float:
        return 1.0 - self.settings.alpha


class ClippedJensenShannon(JensenShannon):
    """Σ min(α·q·log(q/m) + (1-α)·p·log(p/m), clip)."""

    def add_entries(self, totals: Tensor, log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        p, terms, log_m = self.mixture(log_p, log_q, a, b, c)
        terms.mul_(log_q.sub_(log_m))
        g = torch.sub(log_p, log_m, out=log_q)
        by_student = torch.mul(p, g, out=log_m)
        terms.lerp_(by_student, 1.0 - self.settings.alpha)
        clipped = clip_entries(terms, self.settings, totals[1])
        g.masked_fill_(clipped, 0.0)
        totals[0] += by_student.masked_fill_(clipped, 0.0).sum(0)
        log_p.copy_(p)

    def value(self) -> Tensor:
        return self.totals[1]


class ClippedReverseKL(ByEntry):
    """Σ min(p·log(p/q), clip), with g = log(p/q) + 1."""

    def add_entries(self, totals: Tensor, log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        g = torch.sub(log_p, log_q, out=log_q)
        p = log_p.exp_()
        clipped = clip_entries(torch.mul(p, g, out=a), self.settings, totals[1])
        g.add_(1.0).masked_fill_(clipped, 0.0)
        totals[0] += dot(p, g, into=b)


class ClippedForwardKL(ByEntry):
    """Σ min(q·log(q/p), clip). Leaves p·g = -q in the place of log q, because g = -q/p can be infinite."""

    def add_entries(self, totals: Tensor, log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        ratio = torch.sub(log_q, log_p, out=a)
        q = log_q.exp_()
        clipped = clip_entries(ratio.mul_(q), self.settings, totals[1])
        totals[0] -= q.masked_fill_(clipped, 0.0).sum(0)
        log_q.neg_()
        log_p.exp_()

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        out = self.space.scratch(0, stop - start, thread)
        torch.mul(self.space.kept(0, start, stop), self.x, out=out)
        return out.addcmul_(self.space.kept(1, start, stop), self.y)


class OverChosen(Divergence):
    """A divergence over a few chosen tokens: small enough to leave its value and gradient to ``between`` and autograd."""

    keeps_logits = True
    reads_by_block = False

    def add_student_block(self, sums: Sums, b: int, z: Tensor, tokens: Tensor, thread: int) -> None:
        shifted, products = (self.space.scratch(i, len(z), thread) for i in (0, 1))
        sums.add_block(b, z, tokens, shifted=shifted, exponential=products, products=products)

    def value_over(self, p: Distribution, chosen: Tensor, teacher: Tensor, close: Callable[[Tensor], Tensor]) -> Tensor:
        """(n,) the divergence between the student and ``teacher``.

        Args:
            chosen: (k, n) ids.
            teacher: (n, k'), log-probabilities of a whole distribution.
            close: makes one of the same length from the student's log-probabilities (n, k) of the chosen tokens.
        """
        self.p, self.chosen = p, chosen
        settings, z = self.settings, self.space.kept(0, 0, self.space.layout.vocabulary)
        with torch.enable_grad():
            self.leaves = z.gather(0, chosen).requires_grad_(), p.lse.clone().requires_grad_()
            student = close((self.leaves[0] - self.leaves[1]).t())
            self.with_graph = between(
                student, teacher, settings.effective_kind, alpha=settings.alpha, entry_clip=settings.entry_clip
            )
        return self.with_graph.detach()

    def set_token_gradients(self, by_logp: Tensor, by_divergence: Tensor | None) -> None:
        """Replaces the kept logits by the gradient: a multiple of p, plus what autograd found for the chosen tokens."""
        by_logits, by_lse = torch.autograd.grad(self.with_graph, self.leaves, by_divergence)
        for _, start, stop in self.space.blocks():
            self.space.kept(0, start, stop).sub_(self.p.lse).exp_().mul_(by_lse - by_logp)
        self.space.kept(0, 0, self.space.layout.vocabulary).scatter_add_(0, self.chosen, by_logits)

    def logit_gradient(self, b: int, start: int, stop: int, thread: int) -> Tensor:
        return self.space.kept(0, start, stop)


class TopK(OverChosen):
    """The divergence over the likeliest k tokens of student or teacher."""

    def add_teacher_block(
        self, student: Sums, teacher: Sums, b: int, z: Tensor, u: Tensor, tokens: Tensor, thread: int
    ) -> None:
        self.add_student_block(teacher, b, u, tokens, thread)

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        q, settings = tile.q, self.settings
        assert q is not None
        z, u = (self.space.kept(i, 0, self.space.layout.vocabulary) for i in (0, 1))
        chosen = (z if settings.support == "student_topk" else u).topk(settings.top_k, 0, sorted=False).indices
        close = add_tail if settings.has_tail else renormalise
        return q.logp, q.entropy, self.value_over(tile.p, chosen, close((u.gather(0, chosen) - q.lse).t()), close)


class Sparse(OverChosen):
    """The divergence to a ``SparseTeacher``.

    With a tail, ``teacher_logp`` of a token outside the teacher's list is the log-probability of all such tokens
    together, and ``teacher_entropy`` is that of the buckets. Without one both are unknown, and 0.
    """

    columns = 1

    def __init__(
        self,
        settings: DivergenceSettings,
        space: Workspace,
        teacher: ModelRows | SparseRows | None,
        backward: bool,
    ) -> None:
        super().__init__(settings, space, teacher, backward)
        assert isinstance(teacher, SparseRows)
        self.teacher = teacher

    def teacher_scores(self, tile: TileSums) -> TeacherScores | None:
        ids, logp = self.teacher.tokens[tile.rows], self.teacher.logp[tile.rows].to(self.space.dtype)
        absent = logp == -torch.inf
        chosen = ids.t().masked_fill(absent.t(), 0)
        # e^-FLOOR is 0, and 0·FLOOR too, where 0·inf would be NaN.
        teacher = logp.masked_fill(absent, -FLOOR)
        if not self.teacher.tail:
            zero = torch.zeros_like(tile.p.logp)
            return zero, zero, self.value_over(tile.p, chosen, teacher, lambda student: student)
        teacher = add_tail(teacher)
        hit = (ids == tile.tokens.unsqueeze(1)) & ~absent
        known = torch.where(hit, teacher[:, :-1], -FLOOR).amax(1)
        teacher_logp = torch.where(hit.any(1), known, teacher[:, -1])
        entropy = -(teacher.exp() * teacher).sum(1)

        def close(student: Tensor) -> Tensor:
            return add_tail(student.masked_fill(absent, -FLOOR))

        return teacher_logp, entropy, self.value_over(tile.p, chosen, teacher, close)


def clip_entries(terms: Tensor, settings: DivergenceSettings, total: Tensor) -> Tensor:
    """Add Σ min(term, entry_clip) of a block (length, n) to ``total`` (n,). Returns where the clip cut; overwrites
    ``terms``."""
    assert settings.entry_clip is not None
    clipped = terms > settings.entry_clip
    total += terms.clamp_(max=settings.entry_clip).sum(0)
    return clipped


def divergence_class(
    settings: DivergenceSettings, teacher: ModelRows | SparseRows | None, vocabulary: int
) -> type[Divergence]:
    """The class for a group of tokens with this teacher."""
    if teacher is None:
        return NoTeacher
    if isinstance(teacher, SparseRows):
        return Sparse
    if settings.support != "full" and settings.top_k < vocabulary:
        return TopK
    if settings.entry_clip is None:
        return {"reverse_kl": ReverseKL, "js": JensenShannon}.get(settings.effective_kind, ForwardKL)
    return {"reverse_kl": ClippedReverseKL, "js": ClippedJensenShannon}.get(settings.effective_kind, ClippedForwardKL)
