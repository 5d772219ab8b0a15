"""How fast mathematical answers are graded: ``python benchmarks/graders.py`` prints seconds for 1,000 of them.

The answers are the labelled ones of ``tests/feedback/cases``, each once and then from the start; the processes that
compare are started before the clock is. The processor time of one process is printed too: it does not depend on what
else the machine does.
"""

import argparse
import itertools
import json
import platform
import time
from pathlib import Path

from errata.feedback.custom import answer_text
from errata.feedback.math import MathVerifier, grade
from errata.feedback.math_final import final_answer
from errata.feedback.sandbox.worker import processors

CASES = Path(__file__).parents[1] / "tests" / "feedback" / "cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    cases = [case for name in ("math", "math_more") for case in json.loads((CASES / f"{name}.json").read_text("utf-8"))]
    chosen = list(itertools.islice(itertools.cycle(cases), options.answers))
    verifier = MathVerifier(workers=options.workers)
    started = max(1, options.workers or min(8, processors()))
    verifier(completions=[r"\boxed{1}"] * 4 * started, answer=["2"] * 4 * started)
    start = time.perf_counter()
    verdicts = verifier(completions=[c["completion"] for c in chosen], answer=[c["gold"] for c in chosen])
    seconds = time.perf_counter() - start
    unjudged = sum(v.score is None for v in verdicts)
    start = time.process_time()
    for case in chosen:
        final = final_answer(answer_text(case["completion"]))
        if final.texts:
            grade({"answer": case["gold"], "texts": list(final.texts)})
    busy, n = time.process_time() - start, len(chosen)
    print(f"{platform.machine()}, {processors()} processors, {started} workers, Python {platform.python_version()}")
    print(f"{n} answers in {seconds:.1f} s, {1000 * seconds / n:.1f} ms each; {unjudged} not judged")
    print(f"processor time in one process: {busy:.1f} s, {1000 * busy / n:.1f} ms each")


if __name__ == "__main__":
    main()
