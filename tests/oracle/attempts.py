"""The oracle's rollouts, its memory of earlier ones, and what each rollout's teacher is shown, in plain Python."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field
from math import exp
from typing import Any

END, USER, ASSISTANT, FIRST = 1, 2, 3, 6
"""Token ids: end of a turn, the two roles, and of the first printable character."""


def encode(text: str) -> list[int]:
    return [FIRST + string.printable.index(c) for c in text]


def decode(ids: list[int]) -> str:
    return "".join(string.printable[i - FIRST] for i in ids if i >= FIRST)


def asked(text: str) -> list[int]:
    """The chat template around a user's message, with the start of the answer."""
    return [USER, *encode(text), END, ASSISTANT]


@dataclass
class Attempt:
    """One rollout."""

    index: int
    problem: int
    prompt: str
    reference: str
    ids: list[int]
    """Its tokens."""
    reward: float | None
    feedback: str
    leaks: bool
    counted: bool
    """False: its tokens are left out of the loss (it was cut off, and such ones are masked)."""
    advantage: float = 0.0
    entropy: float = 0.0
    """Mean over its tokens."""
    kind: str = "none"
    shown: str | None = None
    """The teacher's user message; ``None`` without a context."""
    scored: bool = False
    """Whether a teacher scores it."""

    @property
    def text(self) -> str:
        return decode(self.ids)

    @property
    def tokens(self) -> list[int]:
        """Those that count."""
        return self.ids if self.counted else []

    def solved(self, threshold: float) -> bool:
        return self.reward is not None and self.reward >= threshold


@dataclass
class Memory:
    """What DRIFT and the feedback history keep."""

    settings: dict[str, Any]
    counts: dict[int, list[float]] = field(default_factory=dict)
    """Of each problem: decayed correct, decayed wrong, step of the last visit; or the running average alone."""
    successes: dict[int, list[tuple[str, float, int]]] = field(default_factory=dict)
    """Of each problem: text, reward, step."""
    failures: dict[int, list[tuple[str, str, bool, int]]] = field(default_factory=dict)
    """Of each problem: attempt, feedback, whether it leaks, step."""
    stage: int = 2
    switched: int = 0
    resets: int = 0

    def __post_init__(self) -> None:
        if self.settings.get("warmup_steps"):
            self.stage = 1

    def observe(self, groups: list[list[Attempt]], step: int) -> None:
        s = self.settings
        threshold = s["success_threshold"]
        if "warmup_steps" in s:
            if self.stage == 1 and step >= s["warmup_steps"]:
                self.stage, self.switched = 2, step
            if s["ledger_reset_every"] is not None and self.stage == 2:
                due = max(step - self.switched - s["transition_steps"], 0) // s["ledger_reset_every"]
                if due > self.resets:
                    self.counts, self.resets = {}, due
        for group in groups:
            judged = [a for a in group if a.reward is not None]
            right = sum(a.solved(threshold) for a in judged)
            if judged and "routing" in s:
                self._count(group[0].problem, right, len(judged), step)
            for a in judged:
                least = s.get("buffer_min_reward")
                if s.get("buffer", "none") != "none" and a.reward >= (threshold if least is None else least):
                    self._store(a, step)
            for a in judged:
                if not a.solved(threshold) and a.feedback:
                    self.failures.setdefault(a.problem, []).append((a.text, a.feedback, a.leaks, step))

    def _count(self, problem: int, right: int, judged: int, step: int) -> None:
        before = self.counts.get(problem)
        if self.settings["routing"] == "paper":
            seen = right / judged
            self.counts[problem] = [seen if before is None else 0.5 * before[0] + 0.5 * seen]
            return
        s, e, last = before or [0.0, 0.0, step]
        visits = step - last if self.settings["decay_per"] == "step" else 1
        decay = 0.85**visits
        self.counts[problem] = [decay * s + right, decay * e + judged - right, step]

    def pass_rate(self, problem: int) -> float:
        known = self.counts.get(problem)
        if known is None:
            return 0.5
        if self.settings["routing"] == "paper":
            return known[0]
        s, e, _ = known
        trust = (s + e) / (s + e + 8)
        return trust * (s + 1) / (s + e + 2) + (1 - trust) * 0.5

    def _store(self, a: Attempt, step: int) -> None:
        s = self.settings
        if not a.text:
            return
        held = self.successes.setdefault(a.problem, [])
        new = (a.text, float(a.reward), step)
        if s["buffer"] == "paper":
            if len(held) == 3:
                worst = min(held, key=self._rank)
                if new[1] < worst[1] or (new[1] == worst[1] and not s["prefer_recent"]):
                    return
                held.remove(worst)
            held.append(new)
        else:
            same = [h for h in held if h[0] == a.text]
            if same and self._rank(same[0]) >= self._rank(new):
                return
            held[:] = [h for h in held if h[0] != a.text] + [new]
        held.sort(key=self._rank, reverse=True)
        del held[3 if s["buffer"] == "paper" else 4 :]

    def _rank(self, entry: tuple[str, float, int]) -> tuple[float, float]:
        _, reward, step = entry
        recent = self.settings["buffer"] == "released" and self.settings["prefer_recent"]
        return (step, reward) if recent else (reward, step)

    def draw(self, attempt: Attempt, rng: random.Random, epoch: float, step: int) -> list[str]:
        """Stored successes to show."""
        s = self.settings
        start = s["buffer_start_epoch"]
        if (
            epoch < ((1.0 if s["buffer"] == "paper" else 0.0) if start is None else start)
            or step < s["buffer_start_step"]
        ):
            return []
        texts = [text for text, *_ in self.successes.get(attempt.problem, []) if text != attempt.text]
        if not texts:
            return []
        if s["buffer"] == "released":
            return texts[: s["demonstrations"]]
        return [texts.pop(int(rng.random() * len(texts))) for _ in range(min(s["demonstrations"], len(texts)))]


def choose_contexts(
    groups: list[list[Attempt]], kind: str, settings: dict[str, Any], memory: Memory, epoch: float, step: int, seed: int
) -> None:
    """Set each attempt's ``kind``, ``shown`` and ``scored``."""
    rng = random.Random(f"{seed}-{step}")
    for group in groups:
        for a in group:
            if a.reward is None:
                continue
            stored: list[str] = []
            if kind == "DRIFT" and settings["buffer"] != "none":
                threshold = settings["success_threshold"]
                others = [b for b in group if b.solved(threshold) and b.index != a.index and b.text != a.text]
                any_right = any(b.solved(threshold) for b in group)
                if not any_right or (settings["buffer_fallback"] == "rollout" and not others):
                    stored = memory.draw(a, rng, epoch, step)
            _choose(a, group, kind, settings, memory, stored, step)


def _choose(
    a: Attempt, group: list[Attempt], kind: str, s: dict[str, Any], memory: Memory, stored: list[str], step: int
) -> None:
    threshold = s["success_threshold"]
    usable = bool(a.feedback) and (s["allow_leaks"] or not a.leaks)
    solutions: list[str] = []
    feedback = a.feedback if usable and s["with_feedback"] else ""
    for source in s["sources"]:
        if source == "sibling":
            solutions = _siblings(a, group, kind, s, memory)
        elif source == "buffer":
            solutions = stored[: s["demonstrations"]]
        elif source == "reference" and s["allow_leaks"]:
            solutions = [a.reference]
        elif source == "feedback" and usable and not a.solved(threshold):
            feedback, a.kind = a.feedback, "feedback"
            break
        elif source == "expert":
            a.kind, a.shown, a.scored = "expert", a.prompt, True
            return
        if solutions:
            a.kind = source
            break
    if not solutions and not feedback:
        return
    a.kind = a.kind if a.kind != "none" else "feedback"
    a.scored = True
    one = (
        solutions[0] if len(solutions) == 1 else "\n\n".join(f"Solution {i + 1}:\n{t}" for i, t in enumerate(solutions))
    )
    a.shown = f"{a.prompt}|{one}|{feedback}|{a.text if feedback else ''}"
    if feedback and s["history"]:
        a.shown += "".join(f"+{text}:{told}" for text, told in _earlier(a, s, memory, step))
    if kind == "SRPO" and a.solved(threshold):
        a.scored = False
    if kind == "DRIFT" and memory.stage == 2 and a.solved(threshold):
        a.scored = _reads_correct(s, memory.pass_rate(a.problem))


def _siblings(a: Attempt, group: list[Attempt], kind: str, s: dict[str, Any], memory: Memory) -> list[str]:
    """Texts of other attempts that succeeded, at most ``demonstrations`` different ones."""
    right = [
        b for b in group if b.solved(s["success_threshold"]) and b.index != a.index and b.text != a.text and b.text
    ]
    found: list[str] = []
    while right and len(found) < s["demonstrations"]:
        best = right[0]
        if kind == "DRIFT" and memory.stage == 1:
            top = max(b.reward for b in right)
            for b in right:
                if b.reward >= top - s["reward_band"] and (
                    best.reward < top - s["reward_band"] or b.entropy > best.entropy
                ):
                    best = b
        elif kind == "DRIFT":
            for b in right:
                if (-b.reward, len(b.ids), b.index) < (-best.reward, len(best.ids), best.index):
                    best = b
        found.append(best.text)
        right = [b for b in right if b.text != best.text]
    return found


def _earlier(a: Attempt, s: dict[str, Any], memory: Memory, step: int) -> list[tuple[str, str]]:
    """Failed attempts of earlier steps, oldest first: of one text the newest, of all the last 2 x history, of these some."""
    kept: list[tuple[str, str, bool]] = []
    for text, told, leaks, when in memory.failures.get(a.problem, []):
        if when < step:
            kept = [k for k in kept if k[0] != text] + [(text, told, leaks)]
            kept = kept[-2 * s["history"] :]
    fit = [(text, told) for text, told, leaks in kept if text != a.text and (s["allow_leaks"] or not leaks)]
    return fit[-s["history"] :]


def gates(s: dict[str, Any], rate: float) -> tuple[float, float, float]:
    """DRIFT's membership of a problem in hard, medium, easy."""
    if s["routing"] == "none":
        return 0.0, 1.0, 0.0
    if s["routing"] == "paper":
        return float(rate < 0.2), float(0.2 <= rate <= 0.8), float(rate > 0.8)
    hard, easy = 1 / (1 + exp(-(0.3 - rate) / 0.08)), 1 / (1 + exp(-(rate - 0.7) / 0.08))
    medium = (1 - hard) * (1 - easy)
    total = hard + medium + easy
    return hard / total, medium / total, easy / total


def bonus_weight(s: dict[str, Any], rate: float) -> float:
    """DRIFT's beta_i."""
    hard, medium, easy = gates(s, rate)
    return float(s["bonus_hard"] * hard + s["bonus_medium"] * medium + s["bonus_easy"] * easy)


def _reads_correct(s: dict[str, Any], rate: float) -> bool:
    """Whether DRIFT reads the teacher's scores of a right attempt."""
    return (s["rhythm"] and bonus_weight(s, rate) > 1e-3) or (not s["binary_routing"] and gates(s, rate)[0] > 1e-3)
