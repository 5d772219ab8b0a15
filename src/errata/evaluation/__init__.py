"""Evaluation of a policy: judged completions, and avg@k, pass@k and maj@k with intervals."""

from errata.evaluation.intervals import Paired, interval, paired
from errata.evaluation.metrics import avg_at_k, maj_at_k, pass_at_k, summary
from errata.evaluation.sampling import Evaluation, evaluate, sample

__all__ = [
    "Evaluation",
    "Paired",
    "avg_at_k",
    "evaluate",
    "interval",
    "maj_at_k",
    "paired",
    "pass_at_k",
    "sample",
    "summary",
]
