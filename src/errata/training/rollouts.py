"""From completions to rollouts: verifiers are run, their verdicts combined, and every rollout is built here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from errata.contexts import has_tools, transcript
from errata.feedback import judge
from errata.records import Prompt, Rollout, Row, Verdict

Completion = Prompt
"""A text, or the messages of one or several turns."""
Verifier = Callable[..., object] | nn.Module | str
"""A function, or a reward model that TRL loads and runs."""


class Recorder:
    """One verifier as a TRL reward function that keeps the verdicts of the last batch, and what they are about.

    A rollout that could not be judged gets ``None``, which TRL leaves out of its group's mean.
    """

    def __init__(self, verifier: Callable[..., object], *, timeout_s: float) -> None:
        """``timeout_s``: seconds that a batch may take."""
        self.verifier, self.timeout_s = verifier, timeout_s
        self.__name__ = getattr(verifier, "__name__", type(verifier).__name__)
        self.verdicts: list[Verdict] = []
        self.prompts: list[Prompt] = []
        self.completions: list[Completion] = []

    def __call__(
        self,
        *,
        prompts: list[Prompt],
        completions: list[Completion],
        completion_ids: list[list[int]] | None = None,
        **columns: object,
    ) -> list[float | None]:
        self.verdicts = judge(
            self.verifier,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            columns=columns,
            timeout_s=self.timeout_s,
        )
        self.prompts, self.completions = list(prompts), list(completions)
        return [v.score for v in self.verdicts]


class Judges:
    """All verifiers of a run with their weights. Reward models (``nn.Module``) are run by TRL and join in by their scores."""

    def __init__(self, verifiers: Sequence[Verifier], *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.functions: list[Verifier] = []
        for verifier in verifiers:
            self.add(verifier)

    def add(self, verifier: Verifier) -> None:
        """One more verifier; a reward model's name or module is left as it is, for TRL to run."""
        if isinstance(verifier, nn.Module | str):
            self.functions.append(verifier)
        else:
            self.functions.append(Recorder(verifier, timeout_s=self._timeout_s))

    @property
    def recorders(self) -> list[Recorder]:
        return [f for f in self.functions if isinstance(f, Recorder)]

    def verdicts(self, scores: Sequence[Sequence[float]], weights: Sequence[float]) -> list[Verdict]:
        """The combined verdicts of the last batch.

        Args:
            scores: (B, number of functions) as TRL has them, NaN where a function gave none; read for reward models alone.
            weights: one per function.
        """
        each = [f.verdicts if isinstance(f, Recorder) else None for f in self.functions]
        return [
            combined([_from_score(scores[i][n]) if told is None else told[i] for n, told in enumerate(each)], weights)
            for i in range(len(scores))
        ]


def combined(verdicts: Sequence[Verdict], weights: Sequence[float]) -> Verdict:
    """One verdict of several on the same rollout: the weighted sum of the scores given, as in TRL, and all feedback.

    Scores that a verifier did not give are left out; without any there is no score. Raises ``ValueError`` where the
    numbers of verdicts and weights differ.
    """
    if len(verdicts) == 1 and len(weights) == 1 and weights[0] == 1.0:
        return verdicts[0]
    scores = [w * v.score for v, w in zip(verdicts, weights, strict=True) if v.score is not None]
    told = [v for v in verdicts if v.feedback.strip() and v.kind != "error"]
    errors = [v for v in verdicts if v.kind == "error"]
    if not scores:
        return errors[0] if errors else Verdict(None)
    return Verdict(
        math.fsum(scores),
        feedback="\n".join(v.feedback.strip() for v in told),
        kind="+".join(dict.fromkeys(v.kind for v in told if v.kind)),
        leaks_answer=any(v.leaks_answer for v in told),
        info={key: value for v in verdicts for key, value in v.info.items()},
    )


def build_rollouts(
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    lengths: Sequence[int],
    indices: Sequence[int],
) -> list[Rollout]:
    """Rollouts, one per completion.

    Args:
        rows: the data set's rows.
        prompts: what was asked, with what an environment showed at its reset.
        completions: texts or messages.
        verdicts: of each completion.
        lengths: tokens that the student generated.
        indices: each rollout's position among those of all processes.
    """
    # Rollouts of one problem share one row, so that the row is sent once when rollouts are gathered.
    columns: dict[str, Row] = {}
    rollouts = []
    for row, prompt, completion, verdict, length, index in zip(
        rows, prompts, completions, verdicts, lengths, indices, strict=True
    ):
        problem_id = str(row["problem_id"])
        if problem_id not in columns:
            columns[problem_id] = {name: value for name, value in row.items() if name != "prompt"}
        rollouts.append(
            Rollout(
                index=index,
                problem_id=problem_id,
                prompt=prompt,
                completion=transcript(completion),
                turns=tuple(dict(m) for m in completion)
                if has_tools(completion) and not isinstance(completion, str)
                else (),
                verdict=verdict,
                length=length,
                reference=row.get("reference"),
                row=columns[problem_id],
            )
        )
    return rollouts


def _from_score(score: float) -> Verdict:
    return Verdict(None if math.isnan(score) else float(score))
