"""Which feedback each rollout's teacher sees, in which words, and what had to be cut."""

from errata.contexts.choose import SOURCES, Source, choose
from errata.contexts.render import DEFAULT, PRESETS, Rendered, Renderer
from errata.contexts.turns import has_tools, hindsight, transcript

__all__ = [
    "DEFAULT",
    "PRESETS",
    "SOURCES",
    "Rendered",
    "Renderer",
    "Source",
    "choose",
    "has_tools",
    "hindsight",
    "transcript",
]
