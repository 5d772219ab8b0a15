"""A warning where answers become shorter and no better."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def length_warning(lengths: Sequence[float], divergences: Sequence[float], *, window: int = 10) -> str | None:
    """A line for the log where answers have become shorter while their divergence from the teacher has not fallen; else ``None``.

    Compares the medians of the first and the last ``window`` steps: length fell by more than a quarter, divergence by
    less than a tenth. An objective that is charged for every token looks like this; a student that learns does not.

    Args:
        lengths: mean number of tokens per answer, one for each step so far.
        divergences: mean divergence per token, one for each step.
        window: steps on either side; with fewer than twice as many there is nothing to say.

    Raises:
        ValueError: on sequences of different lengths, or a window below 1.
    """
    if len(lengths) != len(divergences):
        raise ValueError(
            f"divergences: {len(divergences)} steps, but lengths has {len(lengths)}; give one for each step"
        )
    if window < 1:
        raise ValueError(f"window: {window} is below 1")
    if len(lengths) < 2 * window:
        return None
    (was, now), (kl_was, kl_now) = ((median(x[:window]), median(x[-window:])) for x in (lengths, divergences))
    if now >= 0.75 * was or kl_now <= 0.9 * kl_was:
        return None
    return (
        f"answers fell from {was:.0f} to {now:.0f} tokens while the divergence from the teacher went from {kl_was:.3f} to "
        f"{kl_now:.3f} a token: shorter, not better (docs/length.md)"
    )
