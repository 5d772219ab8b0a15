"""errata: reinforcement learning from rich feedback.

A language model tries, the world answers with more than one bit, and the model, shown that answer, becomes the teacher
that marks its own attempt token by token. ``import errata`` is light: torch and transformers load on first use of a room.
"""

from errata.records import Group, Rollout, TeacherContext, Verdict

__version__ = "0.1.0"
__all__ = ["Group", "Rollout", "TeacherContext", "Verdict", "__version__"]
