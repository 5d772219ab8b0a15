"""Whoever marks: the policy itself, another model, a server, a black box."""

from errata.experts.access import Access
from errata.experts.base import Teacher
from errata.experts.local import LocalExpert, LocalSampler
from errata.experts.queries import Answer, Question
from errata.experts.self_teacher import SelfTeacher

__all__ = ["Access", "Answer", "LocalExpert", "LocalSampler", "Question", "SelfTeacher", "Teacher"]
