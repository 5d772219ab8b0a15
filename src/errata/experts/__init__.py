"""Whoever marks: the policy itself, another model, a server, a black box."""

from errata.experts.access import Access
from errata.experts.answers import Answer, Question
from errata.experts.self_teacher import SelfTeacher

__all__ = ["Access", "Answer", "Question", "SelfTeacher"]
