"""Several tasks or environments in one run, each with a verifier of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.feedback.custom import Verifier, verifier_name
from errata.feedback.sandbox.judge import judge
from errata.records import Verdict, fitting

__all__ = ["RoutedVerifier"]


class RoutedVerifier:
    """The verifier of each row's task or environment.

    A rollout for which there is none is not judged: another verifier, or the environment itself, may judge it.
    """

    limits_own_time = True

    def __init__(self, verifiers: Mapping[str, Verifier], *, timeout_s: float | None) -> None:
        """
        Args:
            verifiers: by task, by what its name begins with before a ``/``, or by environment (``errata.records.fitting``).
            timeout_s: seconds that each may take for its part of a batch.
        """
        self.verifiers, self._timeout_s = dict(verifiers), timeout_s
        self.__name__ = "+".join(dict.fromkeys(verifier_name(v) for v in self.verifiers.values()))

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[Verdict]:
        n = len(completions)
        per_row = {name: v for name, v in columns.items() if isinstance(v, list | tuple) and len(v) == n}
        rest = {name: v for name, v in columns.items() if name not in per_row}
        keys = [fitting({k: v[i] for k, v in per_row.items()}, self.verifiers) for i in range(n)]
        verdicts = [Verdict(None)] * n
        for key, verifier in self.verifiers.items():
            rows = [i for i in range(n) if keys[i] == key]
            if not rows:
                continue
            found = judge(
                verifier,
                prompts=[prompts[i] for i in rows],
                completions=[completions[i] for i in rows],
                completion_ids=None if completion_ids is None else [completion_ids[i] for i in rows],
                columns={name: [values[i] for i in rows] for name, values in per_row.items()}
                | {name: _for_rows(name, value, rows, n) for name, value in rest.items()},
                timeout_s=self._timeout_s,
            )
            for i, verdict in zip(rows, found, strict=True):
                verdicts[i] = verdict
        return verdicts


def _for_rows(name: str, value: Any, rows: Sequence[int], n: int) -> Any:
    """TRL's ``log_extra`` wants one value for each rollout of the batch, ``None`` for those of other verifiers."""
    if name != "log_extra" or value is None:
        return value

    def log(column: str, values: Sequence[Any]) -> None:
        logged = dict(zip(rows, values, strict=False))
        value(column, [logged.get(i) for i in range(n)])

    return log
