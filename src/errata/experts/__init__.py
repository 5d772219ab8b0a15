"""Whoever marks: the policy itself, another model, a server, a black box."""

from errata.experts.answers import Answer, Question
from errata.experts.asking import Asking
from errata.experts.self_teacher import SelfTeacher

__all__ = ["Answer", "Asking", "Question", "SelfTeacher"]
