"""The taskset ``errata-taskset`` of verifiers, which looks for a module of that name: errata's tasks as environments."""

from errata.adapters.verifiers import ErrataTaskset

__all__ = ["ErrataTaskset"]
