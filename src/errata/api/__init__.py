"""The names for Python users: ``Trainer``, ``evaluate``, ``compare`` and ``load_run``, all of them in ``errata`` itself."""

from errata.api.evaluation import evaluate
from errata.api.runs import RunFrames, compare, load_run
from errata.api.trainer import Trainer

__all__ = ["RunFrames", "Trainer", "compare", "evaluate", "load_run"]
