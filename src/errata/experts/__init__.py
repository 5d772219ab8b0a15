"""Teachers and experts: the policy itself, another model on this machine, or a model behind a server.

A `Teacher` is run over the student's tokens and gives its whole distribution. `LocalSampler` and
`errata.experts.remote.ServerExpert` answer a `Query` with a sparse `Answer` instead.
"""

from errata.experts.access import Access
from errata.experts.base import Teacher
from errata.experts.local import LocalExpert, LocalSampler
from errata.experts.queries import Answer, Query
from errata.experts.self_teacher import SelfTeacher

__all__ = ["Access", "Answer", "LocalExpert", "LocalSampler", "Query", "SelfTeacher", "Teacher"]
