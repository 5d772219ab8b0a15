"""From completions to rollouts: verifiers are run, their verdicts combined, and every rollout is built here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from errata.contexts import has_tools, transcript
from errata.feedback import combine_verdicts, judge
from errata.feedback.sandbox.verifier_process import ProcessVerifier, is_own, spec_of
from errata.records import Prompt, Rollout, Row, State, Verdict
from errata.training.environments import failure

logger = logging.getLogger(__name__)

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
        self.verdicts = _without_lost(self.verdicts, columns.get("environments"))
        self.prompts, self.completions = list(prompts), list(completions)
        return [v.score for v in self.verdicts]


class Judges:
    """All verifiers of a run with their weights. Reward models (``nn.Module``) are run by TRL and join in by their scores."""

    def __init__(self, verifiers: Sequence[Verifier], *, timeout_s: float, apart: bool = False) -> None:
        """``apart``: call each verifier in a process of its own, where it can be imported there."""
        self._timeout_s, self._apart = timeout_s, apart
        self._has_judged: set[str] = set()
        self.functions: list[Verifier] = []
        for verifier in verifiers:
            self.add(verifier)

    def add(self, verifier: Verifier) -> None:
        """One more verifier; a reward model's name or module is left as it is, for TRL to run."""
        if isinstance(verifier, nn.Module | str):
            self.functions.append(verifier)
        else:
            called = _in_a_process(verifier) if self._apart else verifier
            self.functions.append(Recorder(called, timeout_s=self._timeout_s))

    @property
    def recorders(self) -> list[Recorder]:
        return [f for f in self.functions if isinstance(f, Recorder)]

    def check(self, problem_ids: Sequence[str]) -> None:
        """Look for verifiers that fail on the last batch. Collective: call on every rank.

        One that fails on at least half of the rollouts of all processes is a warning.

        Args:
            problem_ids: of this process's rollouts.
        Raises:
            ValueError: naming the verifier, the row and the exception, where a verifier fails on every rollout and has never
                judged one in this run: a missing column or import, which will not mend itself.
        """
        local = []
        for recorder in self.recorders:
            failed = [i for i, v in enumerate(recorder.verdicts) if v.kind == "error"]
            first = f"row {problem_ids[failed[0]]!r}: {_error(recorder.verdicts[failed[0]])}" if failed else ""
            local.append((len(failed), len(recorder.verdicts), first))
        for n, parts in enumerate(zip(*gather_object([local]), strict=True)):
            failed_all, total = sum(p[0] for p in parts), sum(p[1] for p in parts)
            first = next((p[2] for p in parts if p[2]), "")
            name = self.recorders[n].__name__
            if failed_all < total:
                self._has_judged.add(f"{n} {name}")
            elif f"{n} {name}" not in self._has_judged:
                raise ValueError(
                    f"verifier: {name} failed on all {total} rollouts; the first: {first}; "
                    "mend the verifier or the data's columns"
                )
            if failed_all * 2 >= total:
                logger.warning("%s failed on %d of %d rollouts; %s", name, failed_all, total, first)

    def state_dict(self) -> State:
        """Which verifiers have judged a rollout, by place and name, JSON-serialisable."""
        return {"has_judged": sorted(self._has_judged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a ``state_dict``; a verifier of another name has to judge first."""
        self._has_judged = set(state["has_judged"])

    def verdicts(self, scores: Sequence[Sequence[float]], weights: Sequence[float]) -> list[Verdict]:
        """The combined verdicts of the last batch.

        Args:
            scores: (B, number of functions) as TRL has them, NaN where a function gave none; read for reward models alone.
            weights: one per function.
        """
        each = [f.verdicts if isinstance(f, Recorder) else None for f in self.functions]
        return [
            combine_verdicts(
                [_from_score(scores[i][n]) if told is None else told[i] for n, told in enumerate(each)], weights
            )
            for i in range(len(scores))
        ]


def _in_a_process(verifier: Callable[..., object]) -> Callable[..., object]:
    """The verifier in a process of its own; itself, with a note, where no other process can import it."""
    if isinstance(verifier, ProcessVerifier) or getattr(verifier, "limits_own_time", False):
        return verifier
    spec = spec_of(verifier)
    if spec is None:
        name = getattr(verifier, "__name__", type(verifier).__name__)
        logger.warning(
            "verifier_isolation: %s runs in the training process, because another process cannot import it; "
            "only functions at the top of a module or file can be",
            name,
        )
        return verifier
    return verifier if is_own(spec) else ProcessVerifier(spec)


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


def _without_lost(verdicts: list[Verdict], environments: object) -> list[Verdict]:
    """The verdicts; a rollout whose environment failed is not judged, because it says nothing about the policy."""
    if not isinstance(environments, list):
        return verdicts
    reasons = [failure(environment) for environment in environments]
    return [
        Verdict(None, kind="error", info={"error": f"environment: {reason}"}) if reason else verdict
        for verdict, reason in zip(verdicts, reasons, strict=True)
    ]


def _error(verdict: Verdict) -> str:
    return " ".join(str(verdict.info.get("error") or verdict.feedback or "no score").split())


def _from_score(score: float) -> Verdict:
    return Verdict(None if math.isnan(score) else float(score))
