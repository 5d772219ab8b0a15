"""Who marks the student's attempt."""

from errata.experts.self_teacher import SelfTeacher

__all__ = ["SelfTeacher"]
