"""Apply mistakes to a copy of the sources, one at a time, and name the test of the oracle that notices each.

    python -m tests.oracle.mutations [NAME ...]

prints a line for each mistake, and exits with 1 if one was not noticed. Each runs the default tests of this directory until
one fails: about ten seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "errata"


@dataclass(frozen=True)
class Mutation:
    """A line of the sources that is replaced."""

    name: str
    file: str
    """Below ``src/errata``."""
    old: str
    """Text that occurs there exactly once."""
    new: str


_TRAINER, _LOSS, _BASE = "training/trainer.py", "training/loss.py", "methods/base.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation("temperature of the loss", _LOSS, "temperature=settings.temperature", "temperature=1.0"),
    Mutation(
        "temperature of the teacher", _TRAINER, "self._scorer,\n            self.temperature", "self._scorer, 1.0"
    ),
    Mutation(
        "temperature of the signals", _TRAINER, "objective.divergence, self.temperature,", "objective.divergence, 1.0,"
    ),
    Mutation("importance clip", _BASE, "            importance_clip=self.importance_clip,\n", ""),
    Mutation("surrogate", _BASE, "            surrogate=self.surrogate,\n", ""),
    Mutation("token clip", _BASE, "            token_clip=self.token_clip,\n", ""),
    Mutation("entry clip", _BASE, ", entry_clip=self.entry_clip)", ")"),
    Mutation("alpha", _BASE, "self.divergence, self.alpha, self", "self.divergence, 0.5, self"),
    Mutation("support", _BASE, "self.alpha, self.support,", 'self.alpha, "full",'),
    Mutation("size of the support", _BASE, "self.top_k or 1", "100"),
    Mutation("vLLM ratio in the batch", "training/compat.py", 'batch.get("importance_sampling_ratio")', "None"),
    Mutation("vLLM ratio in the loss", _LOSS, "if tokens.sampler_ratio is not None:", "if False:"),
    Mutation("old log-probs", _LOSS, "old_logp=tokens.old_logp", "old_logp=None"),
    Mutation(
        "lower bound of the surrogate",
        _TRAINER,
        "replace(objective, clip_low=self.epsilon_low",
        "replace(objective, clip_low=0.2",
    ),
    Mutation(
        "upper bound of the surrogate",
        _TRAINER,
        "clip_high=self.epsilon_high)\n        routed",
        "clip_high=0.28)\n        routed",
    ),
    Mutation("teacher.update()", _TRAINER, "            trainer.teacher.update()\n", "            pass\n"),
    Mutation(
        "rate of the teacher", "training/teachers.py", "if config.teacher_rate is None else config.teacher_rate", ""
    ),
    Mutation("pass rate in the method", "methods/drift.py", "[experience.rate(r.problem_id) for", "[0.5 for"),
    Mutation(
        "pass rate in the memory",
        "experience/bundle.py",
        "if self.ledger is None else self.ledger.rate(problem_id)",
        "",
    ),
    Mutation(
        "routed denominators of tokens",
        _TRAINER,
        "routed = isinstance(method, TeacherMethod) and",
        "routed = False and",
    ),
    Mutation("routed denominators of counts", "training/signals.py", 'method.denominators == "routed"', "False"),
    Mutation("epoch in the trainer", _TRAINER, "float(self.state.epoch or 0.0)", "0.0"),
    Mutation("epoch in the buffer", "methods/drift.py", "                    epoch=epoch,\n", ""),
    Mutation("memory.observe()", _TRAINER, "self.memory.observe(groups, step=step)\n", "pass\n"),
    Mutation("credit's limit", "methods/distil.py", "if self.credit_limit is not None:", "if False:"),
    Mutation("credit's shrinkage", "methods/distil.py", "if self.shrink:", "if False:"),
)


def mutated(mutation: Mutation, text: str) -> str:
    """Raises ``ValueError`` where the mutation's text is not there exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.file} has {text.count(mutation.old)} times {mutation.old!r}, not once"
        )
    return text.replace(mutation.old, mutation.new)


def caught_by(mutation: Mutation | None) -> str | None:
    """The first test that fails on the mutated sources; ``None`` where all pass.

    ``mutation`` ``None``: the sources as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src" / "errata"
        shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            path = copy / mutation.file
            path.write_text(mutated(mutation, path.read_text()))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "--tb=no",
                "tests/oracle/test_gradients.py",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if found is None and done.returncode != 0:
        raise RuntimeError(f"pytest: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return None if found is None else found[1].rpartition("::")[2]


def main(names: Sequence[str]) -> int:
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    missed = 0
    for mutation in chosen:
        test = caught_by(mutation)
        missed += test is None
        print(f"{mutation.name:<36} {test or 'NOT NOTICED'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
