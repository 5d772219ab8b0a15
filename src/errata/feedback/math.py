r"""Mathematics: the final answer compared with the right one as what it means, not as text.

The answer is found (:mod:`~errata.feedback.math_final`), read to its last sign (:mod:`~errata.feedback.math_reading`) and
compared (:mod:`~errata.feedback.math_equality`) with SymPy. What cannot be read as a whole is right only if it is
written like the right answer.
"""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from errata.feedback.custom import answer_text
from errata.feedback.math_final import final_answer, last_boxed
from errata.feedback.sandbox.worker import Worker, processors
from errata.records import Verdict
from errata.validate import Count, Positive

__all__ = ["MathVerifier", "grade", "last_boxed"]

_SHOW = ("nothing", "answer", "reference")
_SHOWN = 150  # characters of the answer given that the feedback repeats


class MathVerifier:
    """Judges final answers as a TRL reward function does: ``verifier(completions=..., answer=[...], reference=[...])``.

    Reads the columns ``answer`` (an expression, LaTeX or plain; a number, or a list of one, is taken as its text) and, if
    it is to be shown, ``reference`` (a solution). The answer of a completion is its last ``\\boxed{...}``, else what
    follows "the answer is"; ``info["boxed"]`` tells which, ``info["rule"]`` which rule decided.

    Args:
        show: what the feedback on a wrong answer reveals beside that it is wrong: ``"nothing"``, the right ``"answer"``, or
            the ``"reference"`` solution (the answer where there is none); the latter two leak the answer.
        timeout_s: time to compare one answer; a rollout that takes longer is not judged.
        workers: processes that compare; by default this process's share of the processors, at most eight.
    Raises:
        ValueError: an unknown ``show``, or at a call a missing column or a row whose answer is no text.
        ImportError: SymPy is not installed; says how to get it.
    """

    limits_own_time = True

    def __init__(self, *, show: str = "nothing", timeout_s: Positive = 5.0, workers: Count | None = None) -> None:
        if show not in _SHOW:
            raise ValueError(f"show: {show!r} is none of {', '.join(_SHOW)}")
        if importlib.util.find_spec("sympy") is None:
            raise ImportError("grading mathematics needs SymPy: pip install 'errata[math]'")
        self.show, self.timeout_s = show, timeout_s
        self.__name__ = "math"
        self._workers = workers or min(8, max(1, processors()))
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(self._workers):
            self._idle.put(Worker("errata.feedback.math:grade", preload=["errata.feedback.math_grade"]))

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "answer" not in columns:
            raise ValueError("columns: the math verifier reads the column 'answer', and the data has none")
        answers = [_answer(value, row) for row, value in enumerate(columns["answer"])]
        references = columns.get("reference") or [None] * len(completions)
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._judge, map(answer_text, completions), answers, references))

    def _judge(self, text: str, answer: str, reference: str | None) -> Verdict:
        final = final_answer(text)
        given = ", ".join(final.texts) if final.texts else None
        info: dict[str, Any] = {"chosen": given, "boxed": final.boxed}
        if given is None:
            said = f"No final answer could be read: {final.problem}. End with one answer in \\boxed{{}}."
            return self._wrong([said], "format", answer, reference, {**info, "rule": final.problem})
        worker = self._idle.get()
        try:
            graded = worker.call({"answer": answer, "texts": final.texts}, timeout_s=self.timeout_s)
        except (TimeoutError, RuntimeError) as error:
            return Verdict(None, kind="error", info={"error": f"comparing with {answer!r}: {error}", "chosen": given})
        finally:
            self._idle.put(worker)
        info["rule"] = graded["rule"]
        if graded["right"]:
            if final.boxed:
                return Verdict(1.0, info=info)
            return Verdict(1.0, "Put the final answer into \\boxed{}.", kind="format", info=info)
        said = f"Your final answer, {_cut(given)}, is wrong."
        if graded["unread"]:
            said = f"Your final answer, {_cut(given)}, could not be read as a whole: {graded['unread']}."
        elif graded["remark"]:
            said += f" {graded['remark']}"
        return self._wrong([said], "answer", answer, reference, info, leaks=graded["leaks"])

    def _wrong(
        self,
        said: list[str],
        kind: str,
        answer: str,
        reference: str | None,
        info: dict[str, Any],
        *,
        leaks: bool = False,
    ) -> Verdict:
        if self.show == "reference" and reference:
            said.append(f"A right solution:\n{reference}")
        elif self.show != "nothing":
            said.append(f"The right answer is {answer}.")
        return Verdict(0.0, " ".join(said), kind=kind, leaks_answer=leaks or self.show != "nothing", info=info)


def _answer(value: Any, row: int) -> str:
    """The right answer of a row as text. Raises ``ValueError`` naming the row for one that is no single text or number."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"answer: {value!r:.80} in row {row} of the batch; write one text or number")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN * 2 // 3]} [...] {text[-_SHOWN // 3 :]}"


def grade(question: dict[str, Any]) -> dict[str, Any]:
    """In a worker: whether ``texts``, one answer or several boxes that are one, mean ``answer``, and by which rule.

    Returns ``right``, ``rule``, ``unread`` (why the answer given cannot be read), ``remark`` (what is wrong with its
    form) and ``leaks`` (whether "wrong" alone gives the answer away).
    """
    from errata.feedback.math_grade import compare

    return compare(question["answer"], question["texts"])
