"""A method's signals, decided over the rollouts of all processes, so that groups are whole wherever they were sampled."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from errata.experience import Memory
from errata.methods import Batch, Method, Scores, Signals, TeacherMethod
from errata.ops.scores import TokenScores
from errata.records import TeacherContext
from errata.training.batch import GenerationBatch, LocalSignals, gather_rows

ScoreAt = Callable[[Tensor], TokenScores]
"""A (B,T) bool mask of this process's tokens -> their scores. All processes call it or none."""


def decide(
    method: Method,
    memory: Memory,
    batch: GenerationBatch,
    score: ScoreAt,
    accelerator: Accelerator,
    group_size: int,
) -> tuple[LocalSignals, dict[str, float]]:
    """The signals of this process's rollouts, and the method's metrics. Collective: call on every rank.

    ``score`` is called at most once, with the tokens that the method's ``score_mask`` names.
    """

    def everyone(values: Tensor) -> Tensor:
        return gather_rows(accelerator, values)

    tokens, device = batch.tokens, batch.tokens.device
    nan = float("nan")
    # A micro-batch may hold the rollouts in another order than they were sampled in.
    order = everyone(torch.tensor([r.index for r in batch.rollouts], device=device)).tolist()
    rollouts, contexts = [batch.everyone[i] for i in order], [batch.all_contexts[i] for i in order]
    reward = torch.tensor([nan if r.reward is None else r.reward for r in rollouts], device=device)
    sparse = batch.teacher.sparse
    mask = everyone(tokens.mask)
    whole = Batch(
        rollouts=rollouts,
        contexts=contexts,
        memory=memory,
        mask=mask,
        reward=reward,
        advantage=everyone(tokens.advantage),
        group=torch.tensor([r.index // group_size for r in rollouts], device=device),
        has_teacher=everyone(batch.teacher.has_teacher.to(device)),
        has_context=torch.tensor([c.is_informative for c in contexts], device=device),
        success=torch.tensor([r.solved(method.success_threshold) for r in rollouts], device=device),
        scores=_method_scores(method, _empty(mask)),
        query_weight=None if sparse is None else everyone(sparse.query_weight),
        sampler_ratio=None if tokens.sampler_ratio is None else everyone(tokens.sampler_ratio),
    )
    rows = slice(accelerator.process_index * len(tokens), (accelerator.process_index + 1) * len(tokens))
    columns = tokens.mask.shape[1]
    if method.score_fields:
        at = method.score_mask(whole) & mask
        if at.any():  # the same on every process
            local = score(at[rows, :columns])
            # Every process must send every field: one whose rollouts have no teacher knows none of the teacher's.
            absent = torch.zeros_like(local.student_logp)
            scores = TokenScores._make(everyone(absent if f is None else f) for f in local)
            whole = replace(whole, scores=_method_scores(method, _known(scores, whole, at)))
        else:
            whole = replace(whole, scores=_method_scores(method, _known(_empty(mask), whole, at)))
    with naming(method, "signals"):
        decided = method.signals(whole)
    signals = _checked(method, decided, mask)
    rl_count = sd_count = mask.sum().float()
    if isinstance(method, TeacherMethod) and method.denominators == "routed":
        rl_count = (signals.rl_weight > 0).sum().float()
        # Where few states were queried, each stands for several.
        sd_count = ((signals.sd_weight > 0) * whole.teacher_weight).sum()
    mine = LocalSignals(
        advantage=signals.advantage[rows, :columns],
        rl_weight=signals.rl_weight[rows, :columns],
        sd_weight=signals.sd_weight[rows, :columns],
        rl_count=rl_count,
        sd_count=sd_count,
        per_token={name: value[rows, :columns] for name, value in signals.per_token.items()},
        per_rollout={name: value[rows] for name, value in signals.per_rollout.items()},
    )
    return mine, dict(signals.metrics)


def checked_context(method: Method, context: object) -> TeacherContext:
    """What a method's ``context`` returned. Raises ``ValueError`` naming the method where it is no ``TeacherContext``."""
    if not isinstance(context, TeacherContext):
        raise ValueError(
            f"{type(method).__name__}.context: must return errata.records.TeacherContext, got {type(context).__name__}"
        )
    return context


@contextmanager
def naming(method: Method, function: str) -> Iterator[None]:
    """A context in which an error of a method's own code becomes a ``ValueError`` that names the method and the place."""
    try:
        yield
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        said = " ".join(str(error).split())
        raise ValueError(
            f"{type(method).__name__}.{function}: {type(error).__name__}: {said:.300} ({place}); mend the method (--debug shows "
            "where it was called)"
        ) from error


def _checked(method: Method, signals: object, mask: Tensor) -> Signals:
    """What a method returned, if the loss can use it. Raises ``ValueError`` naming the method and the field."""
    name = f"{type(method).__name__}.signals"
    if not isinstance(signals, Signals):
        raise ValueError(f"{name}: must return errata.methods.Signals, got {type(signals).__name__}")
    for field in ("advantage", "rl_weight", "sd_weight"):
        value = getattr(signals, field)
        if not isinstance(value, Tensor) or value.shape != mask.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: {field} must be a tensor of shape (B, T) = {tuple(mask.shape)}, got {got}")
        bad = mask & ~(value.isfinite() & ((value >= 0) | (field == "advantage")))
        if bad.any():
            row, token = bad.nonzero()[0].tolist()
            wanted = "finite" if field == "advantage" else "finite and at least 0"
            raise ValueError(
                f"{name}: {field} must be {wanted}, got {float(value[row, token])} at token {token} of rollout {row}"
            )
    for key, number in signals.metrics.items():
        if not isinstance(number, int | float | Tensor):
            raise ValueError(f"{name}: metrics[{key!r}] must be a number, got {number!r:.80}")
    for field, values in (("per_token", signals.per_token), ("per_rollout", signals.per_rollout)):
        shape = mask.shape if field == "per_token" else mask.shape[:1]
        for key, value in values.items():
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(f"{name}: {field}[{key!r}] must be a tensor of shape {tuple(shape)}")
    return signals


def _method_scores(method: Method, scores: TokenScores) -> Scores:
    return Scores(scores, method.score_fields, type(method).__name__)


def _empty(mask: Tensor) -> TokenScores:
    """Scores of which nothing is known."""
    return TokenScores._make([torch.where(mask, torch.nan, 0.0)] * len(TokenScores._fields))


def _known(scores: TokenScores, batch: Batch, at: Tensor) -> TokenScores:
    """The scores with NaN at generated tokens where a value was not computed."""
    unknown = batch.mask & ~at
    no_teacher = unknown | (batch.mask & ~(batch.teacher_weight > 0))

    def marked(value: Tensor | None, where: Tensor) -> Tensor | None:
        return None if value is None else value.masked_fill(where, torch.nan)

    return TokenScores(
        student_logp=scores.student_logp.masked_fill(unknown, torch.nan),
        teacher_logp=marked(scores.teacher_logp, no_teacher),
        student_entropy=scores.student_entropy.masked_fill(unknown, torch.nan),
        teacher_entropy=marked(scores.teacher_entropy, no_teacher),
        divergence=marked(scores.divergence, no_teacher),
    )
