"""SciKnowEval, level 3: four-option science questions, in the split of the SDPO release (arXiv 2601.20802).

``path`` is a folder with ``train.json`` and ``test.json`` of that release (JSON lines), or one with a folder for each
domain. Without it the rows come from the hub (hicai-zju/SciKnowEval) and are split as in the release, nine to one.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from errata.feedback.choice import ChoiceVerifier
from errata.tasks.rows import BadRowError, Row, find_file, from_hub, held_out_rows, json_lines, to_dataset

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
"""Each domain's name on the hub and its number of four-option questions of level 3, train and test together."""

_SYSTEM = (
    "You are given a question with four options, of which exactly one is right. Reason first, then answer, like this:\n"
    "<reasoning>\n...\n</reasoning>\n<answer>\nX\n</answer>\n"
    "where X is the letter of the option you choose: A, B, C or D, and nothing else."
)
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
    if path is None:
        return to_dataset(_hub_rows(domain, split), partial(_convert, domain=domain), source=name, strict=strict)
    folders = (domain, DOMAINS[domain][0].lower(), f"sciknoweval/{domain}")
    file = find_file(path, split, folders=folders)
    convert = partial(_convert, domain=domain)
    held_out = held_out_rows(file, convert) if split == "train" else ()
    return to_dataset(json_lines(file), convert, source=str(file), strict=strict, held_out=held_out)


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
            {"role": "system", "content": row.optional("system") or _SYSTEM},
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


def _hub_rows(domain: str, split: str) -> list[Row | BadRowError]:
    found, count = DOMAINS[domain]
    fix = f"give a local copy with path=DIR, holding {domain}/train.json and {domain}/test.json"
    rows = from_hub("hicai-zju/SciKnowEval", split="test", task=f"sciknoweval/{domain}", fix=fix)
    return _split([r for r in rows if isinstance(r, Row) and _wanted(r, found)], split, expected=count)


def _wanted(row: Row, domain: str) -> bool:
    fields = row.fields
    return (
        fields.get("domain") == domain
        and (fields.get("details") or {}).get("level") == "L3"
        and len((fields.get("choices") or {}).get("label") or ()) == 4
    )


def _split(rows: list[Row], split: str, *, expected: int) -> list[Row | BadRowError]:
    """The hub's rows in the release's form and split."""
    from datasets import Dataset

    if len(rows) != expected:
        logger.warning(
            "the hub has %d such questions, the SDPO release had %d: the split is not its own", len(rows), expected
        )
    # The release numbers the questions in the hub's order and splits the numbers with this seed.
    numbers = Dataset.from_dict({"idx": list(range(len(rows)))}).train_test_split(test_size=0.1, seed=42)[split]["idx"]
    return [Row(_released_form(rows[i], i), rows[i].where) for i in numbers]


def _released_form(row: Row, idx: int) -> dict[str, Any]:
    choices = row.fields["choices"]
    options = "\n".join(f"{label}: {text}" for label, text in zip(choices["label"], choices["text"], strict=True))
    return {
        "idx": idx,
        "prompt": f"{row.text('question')}\n\n{options}\n{_CLOSING}",
        "answer": row.text("answerKey"),
        "system": _SYSTEM,
    }
