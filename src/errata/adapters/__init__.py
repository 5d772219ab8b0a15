"""errata's tasks under other evaluation libraries: Inspect AI (``adapters.inspect``) and verifiers (``adapters.verifiers``)."""

from errata.adapters.problems import Problems

__all__ = ["Problems"]
