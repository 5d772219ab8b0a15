"""Rows whose reference stands where a sampled completion would: what supervised learning needs of them."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset

from errata.methods import Method
from errata.recipe.config import ErrataConfig


def check_references(method: Method, args: ErrataConfig, rows: Dataset, kwargs: Mapping[str, object]) -> None:
    """Raises ``ValueError`` where there is a row without a reference, or a setting that references have no use for."""
    name = type(method).__name__
    given = [k for k in ("tools", "environment_factory", "rollout_func") if kwargs.get(k)]
    if given:
        raise ValueError(f"{given[0]}: {name} learns from references and samples no turns; leave it out")
    if args.use_vllm and args.vllm_importance_sampling_correction:
        raise ValueError(
            f"vllm_importance_sampling_correction: {name} learns from references, which no engine sampled; set it to false"
        )
    texts = rows["reference"] if "reference" in (getattr(rows, "column_names", None) or ()) else [None] * len(rows)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"reference: {name} learns from it, and row {number} ({rows[number]['problem_id']}) has none; "
                "leave such rows out (strict: false does) or use another method"
            )
