"""Policies that have a short name: those that others trained and errata fetches, and the one of the task ``drawers``.

``AutoModelForCausalLM.from_pretrained(DRAWERS_PATH)`` loads the latter, of 90,000 parameters, which
``scripts/pretrain_drawers.py`` made.
"""

from pathlib import Path

__all__ = ["DRAWERS_PATH"]

DRAWERS_PATH = str(Path(__file__).parent / "drawers")
"""Directory of the weights, the tokenizer and the chat template."""
