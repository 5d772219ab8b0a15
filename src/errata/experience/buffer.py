"""What solved this problem before? A few successes per problem, for when a whole group fails.

The two forms of DRIFT (arXiv 2606.30345), from the paper's text and from its released code. Plain state, bounded, JSON
in and out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from errata.experience._check import finite, problem_id_of, saved_by, whole
from errata.records import strip_thinking


class Success(NamedTuple):
    """One stored success: ``Success("7+3=0;0*4=3;", 1.0, 12)``."""

    text: str
    """The completion, without its thinking unless the buffer keeps that."""
    reward: float
    step: int
    """The optimizer step it was sampled at."""


class UniformSource(Protocol):
    """``random.Random`` or ``numpy.random.Generator``."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class SuccessBuffer:
    """At most ``per_problem`` successes of each of at most ``max_problems`` problems, best first.

    ``kind="released"``, the code of DRIFT: four per problem, ranked by (reward, step), or by (step, reward) with
    ``prefer_recent``; the lowest rank gives way. An exact copy of a stored text replaces it only if better or newer.
    ``draw`` is the highest rank.

    ``kind="paper"``, the paper's text: three per problem; a full problem's lowest reward (of equals the oldest) gives
    way only to a strictly higher one. ``draw`` is uniform and starts after ``start_epoch`` epochs (the paper's k = 1).
    With 0/1 rewards a full problem is frozen for good; ``prefer_recent`` lets a newer success replace an equal one.

    Both: thinking (``<think>...</think>``) is stripped for comparing, and for storing unless ``keep_thinking``. Beyond
    ``max_problems``, or ``max_characters`` of text in all, the problem whose best entry ranks lowest (of equals the
    first by name) is forgotten. What counts as a success, and when to ask (the paper: only if the whole group failed),
    is the caller's decision.

    Full to both bounds, 50,000 problems × 4 texts of 1,000 characters, it takes 0.26 GB of memory and 0.21 GB of JSON,
    and 3 s to save or load (``benchmarks/experience_memory.py``).

    ``hits`` and ``misses`` count draws; ``evictions`` counts stored successes that had to give way.
    """

    def __init__(
        self,
        per_problem: int | None = None,
        *,
        kind: Literal["released", "paper"] = "released",
        prefer_recent: bool = False,
        keep_thinking: bool = False,
        start_epoch: float | None = None,
        start_step: int = 0,
        min_reward: float | None = None,
        max_problems: int = 50_000,
        max_characters: int = 200_000_000,
    ) -> None:
        if kind not in ("released", "paper"):
            raise ValueError(f"kind: must be 'released' or 'paper', got {kind!r}")
        published_size, published_wait = (4, 0.0) if kind == "released" else (3, 1.0)
        self.kind = kind
        self.per_problem = whole("per_problem", published_size if per_problem is None else per_problem, least=1)
        self.prefer_recent = prefer_recent
        self.keep_thinking = keep_thinking
        self.start_epoch = finite("start_epoch", published_wait if start_epoch is None else start_epoch, low=0.0)
        self.start_step = whole("start_step", start_step)
        self.min_reward = None if min_reward is None else finite("min_reward", min_reward)
        self.max_problems = whole("max_problems", max_problems, least=1)
        self.max_characters = whole("max_characters", max_characters, least=1)
        self.hits = self.misses = self.evictions = 0
        self._entries: dict[str, list[Success]] = {}
        # A heap of (rank of its best entry, problem), weakest first. Outdated items stay until they come up.
        self._weakest: list[tuple[tuple[float, float], str]] = []
        self._characters = 0

    def __len__(self) -> int:
        """Problems with at least one success."""
        return len(self._entries)

    def entries(self, problem_id: str) -> tuple[Success, ...]:
        """The problem's successes, best first."""
        return tuple(self._entries.get(problem_id_of(problem_id), ()))

    def metrics(self) -> dict[str, int]:
        """Problems and texts held now; hits, misses and evictions so far."""
        return {
            "problems": len(self._entries),
            "texts": sum(map(len, self._entries.values())),
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
        }

    def add(self, problem_id: str, text: str, reward: float, step: int) -> None:
        """Offer one success. One that is nothing but thinking, or longer than the whole buffer, is not stored.

        Raises ``ValueError`` if ``problem_id`` or ``text`` is no string, ``reward`` is not finite or ``step`` negative.
        """
        problem_id = problem_id_of(problem_id)
        if not isinstance(text, str):
            raise ValueError(f"text: must be the completion as a string, got {type(text).__name__}")
        said = strip_thinking(text)
        new = Success(text if self.keep_thinking else said, finite("reward", reward), whole("step", step))
        if not said.strip() or len(new.text) > self.max_characters:
            return
        held = self._entries.get(problem_id, [])
        copies = (entry for entry in held if strip_thinking(entry.text) == said)
        copy = next(copies, None) if self.kind == "released" else None
        if copy is not None and self._rank(copy) >= self._rank(new):
            return
        strict = self.kind == "paper" and not self.prefer_recent
        if strict and len(held) == self.per_problem and new.reward <= held[-1].reward:
            return
        others = [entry for entry in held if entry is not copy]
        ranked = sorted([*others, new], key=self._rank, reverse=True)  # stable: of equals the first stored stays first
        self._replace(problem_id, ranked[: self.per_problem])
        self.evictions += len(ranked) > self.per_problem and ranked[-1] is not new
        self._forget_weakest()

    def top(self, problem_id: str, k: int, exclude: Collection[str] = ()) -> list[str]:
        """The ``k`` best stored texts of the problem, none of them in ``exclude``. Not counted as a draw."""
        unwanted = {strip_thinking(text) for text in ([exclude] if isinstance(exclude, str) else exclude)}
        texts = [entry.text for entry in self.entries(problem_id) if strip_thinking(entry.text) not in unwanted]
        return texts[: whole("k", k)]

    def draw(
        self,
        problem_id: str,
        rng: UniformSource,
        exclude: Collection[str] = (),
        *,
        epoch: float | None = None,
        step: int | None = None,
    ) -> str | None:
        """One earlier success to show, or ``None`` where there is none; else as ``draw_several``."""
        found = self.draw_several(problem_id, 1, rng, exclude, epoch=epoch, step=step)
        return found[0] if found else None

    def draw_several(
        self,
        problem_id: str,
        k: int,
        rng: UniformSource,
        exclude: Collection[str] = (),
        *,
        epoch: float | None = None,
        step: int | None = None,
    ) -> list[str]:
        """At most ``k`` earlier successes to show, best first or as drawn; counted as one draw.

        Args:
            problem_id: whose successes.
            k: how many at most.
            rng: one uniform number is taken from it for each text of the paper's kind; the released kind takes none.
            exclude: texts never to return: the response's own. Compared without thinking.
            epoch: epochs completed so far. Before ``start_epoch`` of them nothing is drawn and nothing counted;
                ``None`` does not wait.
            step: optimizer steps completed so far. Before ``start_step`` of them likewise.
        """
        k = whole("k", k, least=1)
        if epoch is not None and finite("epoch", epoch, low=0.0) < self.start_epoch:
            return []
        if step is not None and whole("step", step) < self.start_step:
            return []
        texts = self.top(problem_id, self.per_problem, exclude)
        if not texts:
            self.misses += 1
            return []
        self.hits += 1
        if self.kind == "released":
            return texts[:k]
        return [texts.pop(int(rng.random() * len(texts))) for _ in range(min(k, len(texts)))]

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable; problems are a list, so that their order survives sorted keys."""
        problems = [[name, [list(entry) for entry in entries]] for name, entries in self._entries.items()]
        counts = {"hits": self.hits, "misses": self.misses, "evictions": self.evictions}
        return {"kind": self.kind, "problems": problems, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the buffer that wrote ``state``. Raises ``ValueError`` if that one was of the other kind."""
        saved_by(state, "problems", "hits", "misses", "evictions", kind=self.kind)
        self._entries, self._weakest, self._characters = {}, [], 0
        for name, rows in state["problems"]:
            ranked = sorted((Success(*row) for row in rows), key=self._rank, reverse=True)
            self._replace(name, ranked[: self.per_problem])
        self._forget_weakest()
        self.hits, self.misses, self.evictions = state["hits"], state["misses"], state["evictions"]

    def _rank(self, entry: Success) -> tuple[float, float]:
        newest_first = self.kind == "released" and self.prefer_recent
        return (entry.step, entry.reward) if newest_first else (entry.reward, entry.step)

    def _replace(self, problem_id: str, entries: list[Success]) -> None:
        self._characters += _characters(entries) - _characters(self._entries.get(problem_id, []))
        self._entries[problem_id] = entries
        heapq.heappush(self._weakest, (self._rank(entries[0]), problem_id))
        if len(self._weakest) > 100 + 2 * len(self._entries):
            self._weakest = [(self._rank(held[0]), name) for name, held in self._entries.items()]
            heapq.heapify(self._weakest)

    def _forget_weakest(self) -> None:
        while len(self._entries) > self.max_problems or self._characters > self.max_characters:
            rank, name = heapq.heappop(self._weakest)
            entries = self._entries.get(name)
            if entries is None or self._rank(entries[0]) != rank:
                continue
            del self._entries[name]
            self._characters -= _characters(entries)
            self.evictions += len(entries)


def _characters(entries: list[Success]) -> int:
    return sum(len(entry.text) for entry in entries)
