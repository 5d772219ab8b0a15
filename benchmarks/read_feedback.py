"""Feedback on wrong answers, to be read by a person: ``python benchmarks/read_feedback.py KIND --count 100`` prints it.

KIND is ``math``, ``choice``, ``tool`` or ``code``. The answers are the wrong ones of ``tests/feedback/cases``, spread
evenly over the files. Where the cases are too few, more are made: for multiple choice another letter is said to be right,
and a right tool call loses an argument, gets another value for one, or names another tool.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.feedback import sandbox
from errata.feedback.choice import ChoiceVerifier
from errata.feedback.code import CodeVerifier
from errata.feedback.math import MathVerifier
from errata.feedback.tool_call import ToolCallVerifier

CASES = Path(__file__).parents[1] / "tests" / "feedback" / "cases"
VERIFIERS = {
    "math": lambda: MathVerifier(timeout_s=60),
    "choice": ChoiceVerifier,
    "tool": ToolCallVerifier,
    "code": lambda: CodeVerifier(unsafe_local=not sandbox.isolation(), timeout_s=5),
}
Row = dict[str, Any]
"""One wrong answer: its ``completions`` entry and the columns its verifier reads."""


def wrong_answers(kind: str) -> list[Row]:
    """All wrong answers of a kind, those of the files first and those made from right ones behind."""
    loaded = [json.loads((CASES / f"{kind}{more}.json").read_text("utf-8")) for more in ("", "_more")]
    cases: list[Row] = [c for part in loaded for c in (part["cases"] if isinstance(part, dict) else part)]
    wrong = [c for c in cases if c.get("score") == 0]
    if kind == "math":
        return [{"completions": c["completion"], "answer": c["gold"]} for c in wrong]
    if kind == "code":
        return [{"completions": c["completion"], "tests": c["tests"], "function": c["function"]} for c in wrong]
    if kind == "choice":
        return [{"completions": c["completion"], "answer": _other(c), "options": c["options"]} for c in cases]
    prompts = loaded[0]["prompts"]
    made = [{**c, "answer": answer} for c in cases if c["score"] == 1 for answer in _other_calls(c["answer"])]
    return [
        {"completions": c["completion"], "prompts": prompts[c["prompt"]], "answer": c["answer"]} for c in wrong + made
    ]


def _other(case: Row) -> str:
    """A letter that the completion does not choose; the first where it chooses none."""
    letters = sorted(case["options"]) if isinstance(case["options"], dict) else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return next(letter for letter in letters if letter != case["letter"])


def _other_calls(answer: str) -> Iterator[str]:
    """Right answers that would make the same completion wrong: other arguments in the first call, or another tool."""
    calls = json.loads(answer)
    name, given = calls[0]["Action"], calls[0]["Action_Input"]
    given = json.loads(given) if isinstance(given, str) else given
    changed = [(name, {**given, "language": "fr"}), (name, dict(list(given.items())[1:])), ("lendBook", {"bookId": 7})]
    changed += [(name, {**given, key: f"{value} too"}) for key, value in given.items() if isinstance(value, str)]
    for other, arguments in changed:
        if (other, arguments) != (name, given):
            yield json.dumps([{"Action": other, "Action_Input": arguments}, *calls[1:]])


def short(value: Any, limit: int = 300) -> str:
    """A value on one line, cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\n", "⏎").encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=VERIFIERS)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    rows = wrong_answers(options.kind)
    if options.kind != "tool":  # there the made answers stand behind those of the files
        rows = [rows[i * len(rows) // options.count] for i in range(min(options.count, len(rows)))]
    rows = rows[: options.count]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for number, (row, verdict) in enumerate(zip(rows, VERIFIERS[options.kind]()(**columns), strict=True), start=1):
        print(f"{number}. ANSWER {short(row['completions'])}")
        for name in ("answer", "options", "tests", "function"):
            if row.get(name):
                print(f"   {name.upper()} {short(row[name])}")
        print(f"   SCORE {verdict.score}, {len(verdict.feedback)} characters: {short(verdict.feedback)}\n")


if __name__ == "__main__":
    main()
