"""Choosing what a rollout's teacher is shown: the first source that has something, in the order a method names.

The usual order is SDPO's (arXiv 2601.20802, section 3): a successful *other* rollout of the group, else feedback on the
rollout itself, else the data set's reference where the method allows it, else nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from errata.contexts.turns import hindsight
from errata.records import Earlier, Group, Rollout, TeacherContext, strip_thinking

SOURCES = ("sibling", "buffer", "feedback", "hindsight", "reference", "expert")
Pick = Callable[[list[Rollout]], Rollout]
"""Which of several successful siblings to show."""
Source = Callable[[Rollout, Group], TeacherContext | None]
"""A source of your own: what it would show, or ``None`` where it has nothing."""


def choose(
    rollout: Rollout,
    group: Group,
    *,
    sources: Sequence[str] = ("sibling", "feedback"),
    threshold: float = 1.0,
    pick: Pick = lambda successes: successes[0],
    stored: Sequence[str] = (),
    demonstrations: int = 1,
    with_feedback: bool = False,
    earlier: Sequence[Earlier] = (),
    history: int = 0,
    allow_leaks: bool = True,
    keep_thinking: bool = False,
    own_sources: Mapping[str, Source] | None = None,
) -> TeacherContext:
    """What the teacher of ``rollout`` is shown.

    Args:
        rollout: the rollout to be scored. Its teacher is never shown its own text as a solution, nor an exact copy of it.
        group: the attempts at the same problem.
        sources: names out of ``SOURCES`` and ``own_sources``, best first.
        threshold: the reward from which an attempt counts as a success.
        pick: chooses among the successful siblings; the first sampled one unless said.
        stored: earlier successes of this problem, best first (the success buffer's draw).
        demonstrations: how many different successes a context from ``sibling`` or ``buffer`` shows at most, best first:
            ``pick``'s choice, then its choice of the rest.
        with_feedback: show the feedback also beside a solution.
        earlier: failed attempts of earlier steps at this problem, oldest first (the feedback history's).
        history: how many of ``earlier``, the newest, are shown beside feedback at most.
        allow_leaks: whether feedback that contains the answer may be shown.
        keep_thinking: show successes and attempts with their thinking.
        own_sources: further sources by name.
    Raises:
        ValueError: a source that is in neither.
    """
    verdict = rollout.verdict
    usable = bool(verdict.feedback.strip()) and verdict.kind != "error" and (allow_leaks or not verdict.leaks_answer)
    beside = verdict.feedback if with_feedback and usable else ""
    past = _past(rollout, earlier, history, allow_leaks)

    def readable(text: str) -> str:
        return text if keep_thinking else strip_thinking(text)

    def shown(kind: str, why: str, solutions: Sequence[str] = (), feedback: str = beside) -> TeacherContext:
        tried = past if feedback else ()
        return TeacherContext(
            kind,
            why + (f"; earlier attempts: {len(tried)}" if tried else ""),
            solution=solutions[0] if solutions else "",
            more_solutions=tuple(solutions[1:]),
            feedback=feedback,
            earlier=tried,
            keep_thinking=keep_thinking,
            # A right solution always holds the answer.
            leaks_answer=bool(solutions or (feedback and verdict.leaks_answer) or any(e.leaks_answer for e in tried)),
        )

    for source in sources:
        if own_sources is not None and source in own_sources:
            own = own_sources[source](rollout, group)
            if own is not None:
                return own
        elif source == "sibling":
            texts = {r.index: readable(r.completion) for r in group.successes(threshold, other_than=rollout)}
            best = _ranked([r for r in group if texts.get(r.index, "").strip()], texts, pick, demonstrations)
            if best:
                return shown("sibling", _who_succeeded(best), [texts[r.index] for r in best])
        elif source == "buffer":
            found = list(dict.fromkeys(readable(text) for text in stored if text != rollout.completion))
            if found:
                return shown("buffer", "an earlier success at this problem", found[: max(demonstrations, 1)])
        elif source == "feedback":
            # Feedback on a solved rollout holds no correction.
            failed = rollout.reward is not None and not rollout.solved(threshold)
            if usable and failed:
                why = f"{verdict.kind or 'feedback'} on its own attempt"
                return shown("feedback", why, feedback=verdict.feedback)
        elif source == "hindsight":
            texts_by_turn = _hindsight(rollout, usable, allow_leaks, threshold)
            if any(texts_by_turn):
                return TeacherContext(
                    "hindsight",
                    f"what followed each of its {len(texts_by_turn)} turns",
                    by_turn=texts_by_turn,
                    keep_thinking=keep_thinking,
                    leaks_answer=verdict.leaks_answer,
                )
        elif source == "reference":
            if rollout.reference and allow_leaks:
                return shown("reference", "the data set's reference", [readable(rollout.reference)])
        elif source == "expert":
            return TeacherContext("expert", "an expert that needs to be shown nothing")
        else:
            raise ValueError(f"sources: {source!r} is none of {', '.join(SOURCES)}")
    if beside:
        return shown("feedback", "feedback on its own attempt")
    return TeacherContext("none", "no success in its group, no feedback, no reference")


def _hindsight(rollout: Rollout, usable: bool, allow_leaks: bool, threshold: float) -> tuple[str, ...]:
    """What may be shown at each of the rollout's turns. A solved rollout's last feedback holds no correction."""
    verdict = rollout.verdict
    failed = rollout.reward is not None and not rollout.solved(threshold)
    about_turns = verdict.turn_feedback if allow_leaks or not verdict.leaks_answer else ()
    messages = rollout.turns or [{"role": "assistant", "content": rollout.completion}]
    return hindsight(messages, about_turns, verdict.feedback if usable and failed else "")


def _ranked(successes: list[Rollout], texts: dict[int, str], pick: Pick, most: int) -> list[Rollout]:
    """At most ``most`` successes of different text, in the order in which ``pick`` would choose them."""
    chosen: list[Rollout] = []
    while successes and len(chosen) < max(most, 1):
        best = pick(successes)
        chosen.append(best)
        successes = [r for r in successes if texts[r.index] != texts[best.index]]
    return chosen


def _who_succeeded(best: list[Rollout]) -> str:
    if len(best) == 1:
        return f"rollout {best[0].index} of its group succeeded (reward {best[0].reward:g})"
    indices, rewards = (
        ", ".join(words) for words in zip(*((str(r.index), f"{r.reward:g}") for r in best), strict=True)
    )
    return f"rollouts {indices} of its group succeeded (rewards {rewards})"


def _past(rollout: Rollout, earlier: Sequence[Earlier], most: int, allow_leaks: bool) -> tuple[Earlier, ...]:
    """The newest of the earlier attempts that may be shown, oldest first."""
    own = strip_thinking(rollout.completion)
    fit = [e for e in earlier if strip_thinking(e.attempt) != own and (allow_leaks or not e.leaks_answer)]
    return tuple(fit[max(len(fit) - most, 0) :])
