"""SciKnowEval, level 3: multiple-choice science questions, in the split of the SDPO release (arXiv 2601.20802).

``path`` is a folder with ``train.json`` and ``test.json`` of that release (JSON lines), or one with a folder for each
domain. Without it the rows come from the hub (hicai-zju/SciKnowEval) and are split as in the release, nine to one.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from errata.feedback.choice import ChoiceVerifier
from errata.tasks.rows import BadRowError, Row, converted, find_file, from_hub, json_lines, rows_beside, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DOMAINS", "load", "verifier"]

logger = logging.getLogger(__name__)

DOMAINS = {
    "biology": ("Biology", 500),
    "chemistry": ("Chemistry", 2100),
    "materials": ("Material", 935),
    "physics": ("Physics", 800),
}
"""Each domain's name on the hub and its number of multiple-choice questions of level 3, train and test together."""

_KINDS = {"mcq-4-choices": 4, "mcq-2-choices": 2}
"""The hub's kinds of question that the release has, and their number of options. In biology two fifths have two."""
_LETTERS = {2: ("two", "A or B"), 4: ("four", "A, B, C or D")}
_CLOSING = "Please reason step by step."


def load(name: str, path: str | None, split: str, *, strict: bool = True) -> Dataset:
    """Rows with ``answer`` (a letter), ``reference`` (the letter in the required format) and ``options`` (their texts).

    ``strict=False`` leaves bad rows out and logs how many.

    Raises:
        ValueError: an unknown split, a missing file, or a bad row.
        ConnectionError: the hub is needed and cannot be reached.
    """
    domain = name.rpartition("/")[2]
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    convert = partial(_convert, domain=domain)
    if path is None:
        released = _hub_rows(domain)
        rows, beside, source = iter(released[split]), iter(released["test"]), name
    else:
        names = dict.fromkeys((domain, DOMAINS[domain][0].lower()))  # the release's folder is `material`
        file = find_file(path, split, folders=[*names, *(f"sciknoweval/{folder}" for folder in names)])
        rows, beside, source = json_lines(file), rows_beside(file), str(file)
    held_out = converted(beside, convert) if split == "train" else ()
    return to_dataset(rows, convert, source=source, strict=strict, held_out=held_out)


def verifier(name: str, **args: Any) -> ChoiceVerifier:
    """See :class:`~errata.feedback.choice.ChoiceVerifier` for ``args``."""
    return ChoiceVerifier(**args)


def _convert(row: Row, domain: str) -> dict[str, Any]:
    question, answer = row.text("prompt"), row.text("answer").strip()
    options = _options(question)
    letters = [chr(ord("A") + i) for i in range(len(options))]
    if len(options) < 2:
        raise row.bad("field 'prompt' ends with no options; write each on a line of its own, 'A: its text'")
    if answer not in letters:
        raise row.bad(f"field 'answer' is {answer!r}; write the letter of an option, one of {', '.join(letters)}")
    return {
        "problem_id": f"sciknoweval/{domain}/{row.text('idx')}",
        "prompt": [
            {"role": "system", "content": row.optional("system") or _system(len(options))},
            {"role": "user", "content": question},
        ],
        "answer": answer,
        "reference": f"<answer>\n{answer}\n</answer>",
        "task": f"sciknoweval/{domain}",
        "options": options,
    }


def _options(question: str) -> list[str]:
    """The texts of the options ``A: ...``, ``B: ...`` at the end of a question. If there are several lists, the last."""
    starts = [m.end() for m in re.finditer(r"^A: ", question, re.MULTILINE)]
    if not starts:
        return []
    rest, texts = question[starts[-1] :].removesuffix(_CLOSING), []
    for letter in "BCDEFGHIJ":
        text, found, rest = rest.partition(f"\n{letter}: ")
        texts.append(text.strip())
        if not found:
            return texts
    return [*texts, rest.strip()]


def _system(options: int) -> str:
    number, letters = _LETTERS.get(options, ("several", f"A to {chr(ord('A') + options - 1)}"))
    return (
        f"You are given a question with {number} options, of which exactly one is right. Reason first, then answer, like this:"
        "\n<reasoning>\n...\n</reasoning>\n<answer>\nX\n</answer>\n"
        f"where X is the letter of the option you choose: {letters}, and nothing else."
    )


def _hub_rows(domain: str) -> dict[str, list[Row | BadRowError]]:
    found, count = DOMAINS[domain]
    fix = f"give a local copy with path=DIR, holding {domain}/train.json and {domain}/test.json"
    rows = from_hub("hicai-zju/SciKnowEval", split="test", task=f"sciknoweval/{domain}", fix=fix)
    everything = [row for row in rows if isinstance(row, Row)]
    wanted = [row for row in everything if _wanted(row, found)]
    if len(wanted) < 2:
        columns = ", ".join(everything[0].fields) if everything else "no rows"
        raise ValueError(
            f"sciknoweval/{domain}: the hub's set has no questions with the columns domain, details and choices as this "
            f"task needs them (it has {columns}); {fix}"
        )
    return _splits(wanted, expected=count)


def _wanted(row: Row, domain: str) -> bool:
    fields = row.fields
    options = len((fields.get("choices") or {}).get("label") or ())
    return (
        fields.get("domain") == domain
        and (fields.get("details") or {}).get("level") == "L3"
        and (fields["type"] in _KINDS if "type" in fields else options in _KINDS.values())
    )


def _splits(rows: list[Row], *, expected: int) -> dict[str, list[Row | BadRowError]]:
    """The hub's rows in the release's form, by split as in the release."""
    from datasets import Dataset

    if len(rows) != expected:
        logger.warning(
            "the hub has %d such questions, the SDPO release had %d: the split is not its own", len(rows), expected
        )
    # The release numbers the questions in the hub's order and splits the numbers with this seed.
    parts = Dataset.from_dict({"idx": list(range(len(rows)))}).train_test_split(test_size=0.1, seed=42)
    return {split: [_released_form(rows[i], i) for i in part["idx"]] for split, part in parts.items()}


def _released_form(row: Row, idx: int) -> Row | BadRowError:
    choices = row.fields["choices"]
    options = "\n".join(f"{label}: {text}" for label, text in zip(choices["label"], choices["text"], strict=True))
    try:
        question, answer = row.text("question"), row.text("answerKey")
    except BadRowError as error:
        return error
    return Row({"idx": idx, "prompt": f"{question}\n\n{options}\n{_CLOSING}", "answer": answer}, row.where)
