"""The embedded world of several turns: open two drawers, each with its own key, by calls of a tool.

``open b d`` asks for two of twelve drawers. The tool ``open(drawer, key)`` says ``b opened by key 5``, or after a wrong key
``b needs key 5``. No prompt tells which key belongs to which drawer; it is the same in every problem, and for most drawers not
the usual one. A problem is solved if no wrong key was used: acting by habit fails, and the tool's error tells why.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

from errata.records import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CALLS", "DRAWERS", "KEYS", "USUAL", "Drawers", "DrawersVerifier", "environment", "load", "verifier"]

DRAWERS = "abcdefghijkl"
USUAL = dict(zip(DRAWERS, "012345670123", strict=True))
"""The keys that the policy of this package is used to, digits from 0 to 7."""
KEYS = dict(zip(DRAWERS, "512703476260", strict=True))
"""The key of each drawer: nine of the twelve locks were changed, and a policy has to find out."""
CALLS = 4
"""Calls that are answered in a rollout: two for each drawer."""
_TEST = 32
_FEEDBACK = ("result", "trace")


class Drawers:
    """Twelve locked drawers. TRL makes an instance for each rollout and offers the policy the method ``open``."""

    keys = KEYS

    def reset(self, **row: Any) -> None:
        """Locks all drawers. ``row`` has the columns of the problem."""
        self.opened: set[str] = set()
        self.wrong = 0
        self.said: list[str] = []

    def open(self, drawer: str, key: str) -> str:
        """
        Opens a drawer with a key.

        Args:
            drawer: the drawer, a letter from a to l.
            key: the key, a digit from 0 to 7.
        """
        if len(self.said) == CALLS:
            return "too late"
        self.said.append(self._try(str(drawer), str(key)))
        return self.said[-1]

    def _try(self, drawer: str, key: str) -> str:
        self.wrong += self.keys.get(drawer) != key
        if drawer not in self.keys:
            return f"there is no drawer {drawer!r:.20}"
        if key != self.keys[drawer]:
            return f"{drawer} needs key {self.keys[drawer]}"
        self.opened.add(drawer)
        return f"{drawer} opened by key {key}"


class DrawersVerifier:
    """1.0 if all drawers of the problem were opened and no wrong key was used, else 0.0.

    Reads the column ``drawers`` and the rollouts' environments.

    Args:
        feedback: ``result`` says how many wrong keys there were, and what is still shut; ``trace`` gives what the tool said to
            each call instead.
    Raises:
        ValueError: an unknown setting.
    """

    def __init__(self, feedback: str = "result") -> None:
        if feedback not in _FEEDBACK:
            raise ValueError(f"feedback: {feedback!r} is none of {', '.join(_FEEDBACK)}")
        self.feedback = feedback
        self.__name__ = "drawers"  # TRL logs a reward function by its name

    def __call__(
        self, completions: Sequence[Any], environments: Sequence[Drawers], drawers: Sequence[str], **columns: Any
    ) -> list[Verdict]:
        return [self._judge(e, wanted) for e, wanted in zip(environments, drawers, strict=True)]

    def _judge(self, environment: Drawers, wanted: str) -> Verdict:
        shut = [drawer for drawer in wanted if drawer not in environment.opened]
        info = {"opened": len(wanted) - len(shut), "wrong_keys": environment.wrong}
        if not shut and not environment.wrong:
            return Verdict(1.0, info=info)
        if self.feedback == "trace":
            lines = environment.said
        else:
            lines = [f"{environment.wrong} wrong", *(f"{drawer} is shut" for drawer in shut)]
        return Verdict(0.0, "\n".join(lines), kind=self.feedback, info=info)


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """All 132 ordered pairs of drawers, 32 of them in the test split. Own column: ``drawers``, such as ``bd``.

    Every row can be used, so ``strict`` changes nothing. Raises ``ValueError`` for an unknown split, and for a ``path``.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is made, not read; leave the path out")
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has train and test, not {split!r}")
    orders = ["".join(order) for order in permutations(DRAWERS, 2)]
    random.Random("drawers").shuffle(orders)
    chosen = orders[:_TEST] if split == "test" else orders[_TEST:]
    return Dataset.from_list(
        [
            {
                "problem_id": f"{name}/{order}",
                "prompt": [{"role": "user", "content": f"open {' '.join(order)}"}],
                "answer": "".join(KEYS[drawer] for drawer in order),
                "reference": None,
                "task": name,
                "drawers": order,
            }
            for order in chosen
        ]
    )


def verifier(name: str, **args: Any) -> DrawersVerifier:
    """See :class:`DrawersVerifier` for ``args``."""
    return DrawersVerifier(**args)


def environment(name: str) -> type[Drawers]:
    """The class whose instances a run's rollouts act in."""
    return Drawers
