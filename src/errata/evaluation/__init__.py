"""Evaluation of a policy: judged completions, and avg@k, pass@k and maj@k with intervals."""

from errata.evaluation.metrics import avg_at_k, bootstrap_interval, maj_at_k, pass_at_k, summary
from errata.evaluation.sampling import Evaluation, evaluate, sample

__all__ = ["Evaluation", "avg_at_k", "bootstrap_interval", "evaluate", "maj_at_k", "pass_at_k", "sample", "summary"]
