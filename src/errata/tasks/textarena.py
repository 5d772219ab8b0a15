"""Games of TextArena for one player: ``textarena:GuessTheNumber-v0``, or ``textarena:NAME?rows=64``.

A row is a seed. The game's first words are the prompt; each of the policy's messages is a move, and what the game says of it
comes back as the user's next message, errors too. The game's own reward is the score, and its reason for the end the feedback.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from errata.records import Verdict
from errata.tasks.worlds import WorldVerifier, arguments_of, need, one_line

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["environment", "load", "verifier"]

_ROWS = {"train": 256, "test": 64}


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """Rows with the column ``game_seed``; the test split has other seeds. ``?rows=N`` changes how many.

    Raises ``ValueError`` for an unknown split, game or argument, a ``path``, or a game that cannot begin.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is played, not read; leave the path out")
    if split not in _ROWS:
        raise ValueError(f"split: {name} has train and test, not {split!r}")
    count = _settings(name)[1].get("rows", _ROWS[split])
    world, first = _world(name)(), 0 if split == "train" else 1_000_000
    return Dataset.from_list(
        [
            {
                "problem_id": f"{name}/{seed}",
                "prompt": [{"role": "user", "content": world._begin(seed)}],
                "answer": "",
                "reference": None,
                "task": name,
                "game_seed": seed,
            }
            for seed in range(first, first + count)
        ]
    )


def verifier(name: str) -> WorldVerifier:
    """The game's own reward."""
    return WorldVerifier()


def environment(name: str) -> type[TextArenaWorld]:
    """The class whose instances a run's rollouts play in."""
    return _world(name)


class TextArenaWorld:
    """One game."""

    name = ""
    """The task's."""

    def reset(self, *, game_seed: int, **columns: Any) -> None:
        """Begins the game of a seed. Its first words are in the row's prompt."""
        self._begin(game_seed)

    def _begin(self, seed: int) -> str:
        import textarena

        game = _settings(self.name)[0]
        self.random, self.outcome = random.Random(seed).getstate(), None
        try:
            with self._own_numbers():
                self.game = textarena.make(f"{game}-raw")  # without the wrapper that repeats all that was said
                self.game.reset(num_players=1, seed=seed)
        except Exception as error:  # a word list that is not there, a game for two
            raise ValueError(f"task: {self.name} cannot begin: {one_line(error)}") from error
        return self._said()

    def _reply(self, text: str) -> str | None:
        if self.outcome is not None:
            return None
        with self._own_numbers():
            over, _ = self.game.step(text)
            self.outcome = self.game.close() if over else None
        return None if over else self._said()

    def _verdict(self) -> Verdict:
        if self.outcome is None:
            return Verdict(0.0, "The game was not over.", kind="game")
        rewards, told = self.outcome
        score, end = float((rewards or {}).get(0, 0.0)), (told or {}).get(0, {})
        feedback = "" if score >= 1 else str(end.get("reason") or "")
        info = {"turns": end.get("turn_count"), "invalid_move": bool(end.get("invalid_move"))}
        return Verdict(score, feedback, kind="game" if feedback else "", info=info)

    def _said(self) -> str:
        """What the game said since the last move; the policy's own moves are left out."""
        from textarena import ObservationType

        with self._own_numbers():
            _, observed = self.game.get_observation()
        return "\n".join(text.strip() for _, text, kind in observed if kind != ObservationType.PLAYER_ACTION)

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """TextArena draws from Python's one generator: here each game has its own state, and the run's stays as it is."""
        outside = random.getstate()
        random.setstate(self.random)
        try:
            yield
        finally:
            self.random = random.getstate()
            random.setstate(outside)


@cache
def _settings(name: str) -> tuple[str, dict[str, Any]]:
    need("textarena", "errata[textarena]")
    game, args = arguments_of(name.partition(":")[2])
    from textarena.envs.registration import ENV_REGISTRY

    if f"{game}-raw" not in ENV_REGISTRY:
        raise ValueError(f"task: TextArena has no game {game!r}")
    rows = args.pop("rows", None)
    if args or not (rows is None or (isinstance(rows, int) and rows > 0)):
        raise ValueError(f"task: {name!r}: the one argument is rows, a number above 0")
    return game, {} if rows is None else {"rows": rows}


@cache
def _world(name: str) -> type[TextArenaWorld]:
    _settings(name)
    return type("TextArenaWorld", (TextArenaWorld,), {"name": name, "__module__": __name__})
