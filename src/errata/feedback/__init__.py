"""The world's answers: a verifier turns a completion into a :class:`~errata.records.Verdict`: score and words."""

from errata.feedback.custom import as_verdicts, combine, completion_text, load_function, load_verifier
from errata.feedback.sandbox.judge import judge

__all__ = ["as_verdicts", "combine", "completion_text", "judge", "load_function", "load_verifier"]
