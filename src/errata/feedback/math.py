"""Mathematics: the final answer compared with the right one by math-verify, as expressions, not as text."""

from __future__ import annotations

import importlib.util
import logging
import queue
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from errata.feedback.custom import answer_text
from errata.feedback.sandbox.worker import Worker, processors
from errata.records import Verdict

__all__ = ["MathVerifier", "grade", "last_boxed"]

_SHOW = ("nothing", "answer", "reference")


def last_boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` of a text holds, braces matched; ``None`` if there is none that is closed."""
    for start in reversed([m.end() for m in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for match in re.finditer(r"\\.|[{}]", text[start:]):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return text[start : start + match.start()].strip()
    return None


class MathVerifier:
    """Judges final answers as a TRL reward function does: ``verifier(completions=..., answer=[...], reference=[...])``.

    Reads the columns ``answer`` (an expression, LaTeX or plain) and, if it is to be shown, ``reference`` (a solution). The
    answer of a completion is its last ``\\boxed{...}``, else what follows "the answer is"; ``info["boxed"]`` tells which.

    Args:
        show: what the feedback on a wrong answer reveals beside that it is wrong: ``"nothing"``, the right ``"answer"``, or
            the ``"reference"`` solution (the answer where there is none); the latter two leak the answer.
        timeout_s: time to compare one answer. Some expressions take for ever; the rollout is then not judged.
        workers: processes that compare; by default half of this process's share of the processors, at most eight.
    Raises:
        ValueError: an unknown ``show``, or at a call a missing column.
        ImportError: math-verify is not installed; says how to get it.
    """

    limits_own_time = True

    def __init__(self, *, show: str = "nothing", timeout_s: float = 5.0, workers: int | None = None) -> None:
        if show not in _SHOW:
            raise ValueError(f"show: {show!r} is none of {', '.join(_SHOW)}")
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("grading mathematics needs math-verify: pip install 'errata[math]'")
        self.show, self.timeout_s = show, timeout_s
        self.__name__ = "math"
        self._workers = workers or min(8, max(1, processors() // 2))
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(self._workers):
            self._idle.put(Worker("errata.feedback.math:grade", preload=["math_verify"]))

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "answer" not in columns:
            raise ValueError("columns: the math verifier reads the column 'answer', and the data has none")
        references = columns.get("reference") or [None] * len(completions)
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._judge, map(answer_text, completions), columns["answer"], references))

    def _judge(self, text: str, answer: str, reference: str | None) -> Verdict:
        boxed = last_boxed(text)
        worker = self._idle.get()
        try:
            graded = worker.call({"answer": answer, "boxed": boxed, "text": text[-2000:]}, timeout_s=self.timeout_s)
        except (TimeoutError, RuntimeError) as error:
            return Verdict(None, kind="error", info={"error": f"comparing with {answer!r}: {error}", "given": boxed})
        finally:
            self._idle.put(worker)
        info = {"given": graded["given"], "boxed": boxed is not None}
        if graded["right"]:
            if boxed is not None:
                return Verdict(1.0, info=info)
            return Verdict(1.0, "Put the final answer into \\boxed{}.", kind="format", info=info)
        if graded["given"] is None:
            said, kind = ["No final answer could be read; put it into \\boxed{}."], "format"
        else:
            said, kind = [f"Your final answer, {graded['given']}, is wrong."], "answer"
        if self.show == "reference" and reference:
            said.append(f"A right solution:\n{reference}")
        elif self.show != "nothing":
            said.append(f"The right answer is {answer}.")
        return Verdict(0.0, " ".join(said), kind=kind, leaks_answer=self.show != "nothing", info=info)


def grade(question: dict[str, Any]) -> dict[str, Any]:
    """In a worker: whether the answer given, ``boxed`` or at the end of ``text``, equals ``answer``; and what was given."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time is limited by others: by us
    answer, given = question["answer"], question["boxed"]
    if given is not None:
        attempt = _read(given)
    else:
        anchored = [kind(try_extract_without_anchor=False) for kind in (LatexExtractionConfig, ExprExtractionConfig)]
        attempt = parse(question["text"], extraction_config=anchored, parsing_timeout=None)
        given = str(attempt[-1]) if attempt else None
    right = given is not None and " ".join(given.split()) == " ".join(answer.split())
    if not right and attempt:
        right = verify(_read(answer), attempt, timeout_seconds=None)
    return {"right": bool(right), "given": given}


def _read(expression: str) -> list[Any]:
    plain = re.sub(r"(\d)[eE]([+-]?\d+)", r"\1\\times 10^{\2}", expression.strip().strip("$"))
    from math_verify import parse

    found: list[Any] = parse(f"${plain}$", parsing_timeout=None)
    return found
