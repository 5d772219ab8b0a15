"""errata: reinforcement learning from rich feedback.

``Trainer`` trains a policy by a method; ``evaluate`` measures one, ``compare`` trains and compares several methods, and
``load_run`` reads a run. A verifier returns ``Verdict``: a score and feedback. ``import errata`` takes a few milliseconds:
torch, transformers and TRL load at the first use of a name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from errata.records import Group, Rollout, TeacherContext, Verdict

if TYPE_CHECKING:
    from errata.api import Trainer, compare, evaluate, load_run
    from errata.api import Trainer as ErrataTrainer
    from errata.recipe.config import ErrataConfig

__version__ = "0.1.0"
__all__ = [
    "ErrataConfig",
    "ErrataTrainer",
    "Group",
    "Rollout",
    "TeacherContext",
    "Trainer",
    "Verdict",
    "__version__",
    "compare",
    "evaluate",
    "load_run",
]

_LATER = {
    "Trainer": ("errata.api", "Trainer"),
    "ErrataTrainer": ("errata.api", "Trainer"),
    "ErrataConfig": ("errata.recipe.config", "ErrataConfig"),
    "evaluate": ("errata.api", "evaluate"),
    "compare": ("errata.api", "compare"),
    "load_run": ("errata.api", "load_run"),
}
"""Names whose modules load torch: each is imported at its first use."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'errata' has no attribute {name!r}")
    module, attribute = _LATER[name]
    globals()[name] = found = getattr(import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
