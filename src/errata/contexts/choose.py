"""Choosing what a rollout's teacher is shown: the first source that has something, in the order a method names.

The usual order is SDPO's (arXiv 2601.20802, section 3): a successful *other* attempt of the group, else the world's
feedback on the rollout's own attempt, else the data set's reference where the method allows it, else nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from errata.records import Group, Rollout, TeacherContext, strip_thinking

SOURCES = ("sibling", "buffer", "feedback", "reference", "expert")
Pick = Callable[[list[Rollout]], Rollout]
"""Which of several successful siblings to show."""


def choose(
    rollout: Rollout,
    group: Group,
    *,
    sources: Sequence[str] = ("sibling", "feedback"),
    threshold: float = 1.0,
    pick: Pick = lambda successes: successes[0],
    stored: Sequence[str] = (),
    with_feedback: bool = False,
    allow_leaks: bool = True,
) -> TeacherContext:
    """What the teacher of ``rollout`` is shown.

    Args:
        rollout: the attempt to be marked. It is never shown its own text, nor an exact copy of it.
        group: the attempts at the same problem.
        sources: names out of ``SOURCES``, best first.
        threshold: the reward from which an attempt counts as a success.
        pick: chooses among the successful siblings; the first sampled one unless said.
        stored: earlier successes of this problem, best first (the success buffer's draw).
        with_feedback: show the feedback also beside a solution.
        allow_leaks: whether feedback that contains the answer may be shown.
    Raises:
        ValueError: a source that is not in ``SOURCES``.
    """
    verdict = rollout.verdict
    usable = bool(verdict.feedback.strip()) and verdict.kind != "error" and (allow_leaks or not verdict.leaks_answer)
    beside = verdict.feedback if with_feedback and usable else ""
    beside_leaks = bool(beside) and verdict.leaks_answer

    def shown(kind: str, why: str, solution: str) -> TeacherContext:
        # A right solution always holds the answer.
        return TeacherContext(kind, why, solution=strip_thinking(solution), feedback=beside, leaks_answer=True)

    for source in sources:
        if source == "sibling":
            siblings = group.successes(threshold, other_than=rollout)
            if siblings:
                best = pick(siblings)
                return shown(
                    "sibling", f"rollout {best.index} of its group succeeded (reward {best.reward:g})", best.completion
                )
        elif source == "buffer":
            texts = [text for text in stored if text != rollout.completion]
            if texts:
                return shown("buffer", "an earlier success at this problem", texts[0])
        elif source == "feedback":
            # Praise for a solved attempt tells the teacher nothing it could mark with.
            failed = rollout.reward is not None and rollout.reward < threshold
            if usable and failed:
                why = f"the world's {verdict.kind or 'feedback'} on its own attempt"
                return TeacherContext("feedback", why, feedback=verdict.feedback, leaks_answer=verdict.leaks_answer)
        elif source == "reference":
            if rollout.reference and allow_leaks:
                return shown("reference", "the data set's reference", rollout.reference)
        elif source == "expert":
            return TeacherContext("expert", "an expert that needs to be shown nothing")
        else:
            raise ValueError(f"sources: {source!r} is none of {', '.join(SOURCES)}")
    if beside:
        return TeacherContext("feedback", "the world's feedback", feedback=beside, leaks_answer=beside_leaks)
    return TeacherContext("none", "no success in its group, no feedback, no reference")
