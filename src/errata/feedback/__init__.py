"""Verifiers: functions from completions to :class:`~errata.records.Verdict`, a score and a text."""

from errata.feedback.custom import as_verdicts, combine_verdicts, completion_text, load_function, load_verifier
from errata.feedback.sandbox.judge import judge

__all__ = ["as_verdicts", "combine_verdicts", "completion_text", "judge", "load_function", "load_verifier"]
