"""The commands of ``errata``: train, compare, eval, and the preview of tasks."""
