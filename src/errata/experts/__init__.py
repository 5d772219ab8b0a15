"""Who marks the student's attempt."""

from errata.experts.base import Teacher
from errata.experts.local import LocalExpert, LocalSampler
from errata.experts.self_teacher import SelfTeacher

__all__ = ["LocalExpert", "LocalSampler", "SelfTeacher", "Teacher"]
