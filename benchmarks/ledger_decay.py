"""The error of each ledger's pass rates: decay per step, decay per visit, and the paper's average.

    python benchmarks/ledger_decay.py

Every problem's true pass rate climbs along a logistic curve at a time of its own within 400 steps (a fifth never does).
It is visited with 8 attempts every R steps; R is the data set's size over the problems in a step. Printed are the root
mean square error of the ledger's rate just after a visit, and how often the nearest of hard (< 0.3), medium and easy
(> 0.7) is the true one.
"""

from __future__ import annotations

import math
import random

from errata.experience import PassRateLedger

STEPS, PROBLEMS, ATTEMPTS = 400, 300, 8
LEDGERS = {
    "released, per step": {"kind": "released", "decay_per": "step"},
    "released, per visit": {"kind": "released", "decay_per": "visit"},
    "paper, alpha 0.5": {"kind": "paper"},
}


def bin_of(p: float) -> int:
    return (p >= 0.3) + (p > 0.7)


def measure(settings: dict[str, str], every: int) -> tuple[float, float]:
    rng = random.Random(0)
    ledger = PassRateLedger(**settings)  # type: ignore[arg-type]
    squares, right, visits = 0.0, 0, 0
    for problem in range(PROBLEMS):
        middle = math.inf if rng.random() < 0.2 else rng.uniform(0, STEPS)
        width = rng.uniform(5, 60)
        for step in range(rng.randrange(every), STEPS, every):
            truth = 0.02 + 0.96 / (1 + math.exp(min((middle - step) / width, 700)))
            n_correct = sum(rng.random() < truth for _ in range(ATTEMPTS))
            p = ledger.update(str(problem), n_correct, ATTEMPTS, step)
            squares, right, visits = squares + (p - truth) ** 2, right + (bin_of(p) == bin_of(truth)), visits + 1
    return math.sqrt(squares / visits), right / visits


if __name__ == "__main__":
    print(f"{'':22}" + "".join(f"{f'R = {every}':>16}" for every in (1, 4, 16, 64, 128)))
    for name, settings in LEDGERS.items():
        results = [measure(settings, every) for every in (1, 4, 16, 64, 128)]
        print(f"{name:22}" + "".join(f"{f'{error:.3f}  {share:.0%}':>16}" for error, share in results))
