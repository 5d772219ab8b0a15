"""Verifiable instructions: write a sentence, or a JSON object, that keeps every constraint its prompt names.

``instructions/length`` wants an exact number of words, ``include`` and ``exclude`` required and forbidden words, ``order``
required words in an order, ``case`` capital or small letters, ``json`` an object with given keys, ``mixed`` several at once.
Many answers are right, and each row's reference is one of them. Problems are drawn from a seed. A prompt's checksum decides
its split, so train and test rows cannot overlap.
"""

from __future__ import annotations

import itertools
import json
import random
import zlib
from typing import TYPE_CHECKING, Any

from errata.feedback.instructions import InstructionVerifier

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load", "split_of", "verifier"]

_SIZES = {"train": 512, "test": 128}

NOUNS = """
apple arm bag ball bank bed bell bird boat book bottle box bread bridge brush bus cake camera car cat chair cheese church city
clock cloud coat coin cow cup desk dog door dress drum duck egg farm field fire fish flag flower forest fox garden gate glass
goat guitar hand hat hill horse house island jar key king kite knife lake lamp leaf letter lion map mirror moon mountain mouse
nail needle net nose ocean owl pen phone piano picture plate pond queen rabbit ring river road roof rope sea shell ship shoe
snake snow spoon star stone sun table tent tower train tree truck village wall window wolf
"""
ADJECTIVES = """
big blue bright calm clean cold dark deep dry empty fast fresh green happy heavy high kind large light long new old quiet red
rich round sad short small soft strong tall warm white wide wild young
"""
FORBIDDEN = ("the", "a", "is", "and", "of", "in", "to", "it")
KEYS = {
    "name": "Ana",
    "age": 30,
    "city": "Rome",
    "color": "red",
    "price": 12,
    "title": "The River",
    "year": 1999,
    "country": "Peru",
    "animal": "owl",
    "size": "small",
    "job": "baker",
    "language": "French",
}
_VERBS = ("waits", "stands", "rests", "moves", "stays", "lives")
_MORE = (
    "in the garden",
    "near the old house",
    "every day",
    "again",
    "there",
    "with us",
    "today",
    "so quietly",
    "for some years",
)


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """The task's rows, the same on every call. Own column: ``constraints``, a list of them as JSON text.

    None is ever bad, so ``strict`` changes nothing.
    Raises ``ValueError`` for an unknown split, and for a ``path``: nothing is read from files.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is made, not read; leave the path out")
    if split not in _SIZES:
        raise ValueError(f"split: {name} has {' and '.join(_SIZES)}, not {split!r}")
    rng = random.Random(f"{name} {split}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < _SIZES[split]:
        prompt, constraints, reference = _DRAW[name.rpartition("/")[2]](rng)
        if prompt in rows or split_of(prompt) != split:
            continue
        rows[prompt] = {
            "problem_id": f"{name}/{split}/{len(rows)}",
            "prompt": [{"role": "user", "content": prompt}],
            "answer": reference,
            "reference": reference,
            "task": name,
            "constraints": json.dumps(constraints),
        }
    return Dataset.from_list(list(rows.values()))


def verifier(name: str, **args: Any) -> InstructionVerifier:
    """:class:`InstructionVerifier` with ``feedback="all"|"first"|"bit"`` and ``partial``."""
    return InstructionVerifier(**args)


def split_of(prompt: str) -> str:
    """``"test"`` for a fifth of all prompts, else ``"train"``: holds for any number of rows ever drawn."""
    return "test" if zlib.crc32(prompt.encode()) % 5 == 0 else "train"


Drawn = tuple[str, list[dict[str, Any]], str]
"""Prompt, constraints, and an answer that keeps them."""

ONE_SENTENCE = {"kind": "sentences", "count": 1}


def _length(rng: random.Random) -> Drawn:
    noun, words = rng.choice(NOUNS.split()), rng.randint(4, 12)
    constraints = [{"kind": "length", "words": words}, _kind("include", [noun]), ONE_SENTENCE]
    return (
        f'Write one sentence of exactly {words} words with the word "{noun}".',
        constraints,
        _sentence(rng, noun, words),
    )


def _include(rng: random.Random) -> Drawn:
    nouns, adjective = rng.sample(NOUNS.split(), 2), rng.choice(ADJECTIVES.split())
    constraints = [_kind("include", [*nouns, adjective]), ONE_SENTENCE]
    prompt = f"Write one sentence with the words {_listed([*nouns, adjective])}."
    return prompt, constraints, f"The {nouns[0]} is near the {adjective} {nouns[1]}."


def _exclude(rng: random.Random) -> Drawn:
    noun, forbidden = rng.choice(NOUNS.split()), rng.sample(FORBIDDEN, 2)
    constraints = [_kind("include", [noun]), _kind("exclude", forbidden), ONE_SENTENCE]
    prompt = f'Write one sentence with the word "{noun}" but without the words {_listed(forbidden)}.'
    return prompt, constraints, f"My {noun} was very {rng.choice(ADJECTIVES.split())} that day."


def _order(rng: random.Random) -> Drawn:
    nouns = rng.sample(NOUNS.split(), 3)
    constraints = [_kind("include", nouns), _kind("order", nouns), ONE_SENTENCE]
    prompt = f"Write one sentence with the words {_listed(nouns)} in this order."
    return prompt, constraints, f"The {nouns[0]} is between the {nouns[1]} and the {nouns[2]}."


def _case(rng: random.Random) -> Drawn:
    noun, adjective, case = rng.choice(NOUNS.split()), rng.choice(ADJECTIVES.split()), rng.choice(["upper", "lower"])
    constraints = [{"kind": "case", "case": case}, _kind("include", [noun, adjective]), ONE_SENTENCE]
    prompt = f"Write one sentence with the words {_listed([noun, adjective])} in {_letters(case)} letters only."
    sentence = f"The {noun} is {adjective}."
    return prompt, constraints, sentence.upper() if case == "upper" else sentence.lower()


def _json(rng: random.Random) -> Drawn:
    keys = rng.sample(list(KEYS), rng.randint(2, 4))
    prompt = f"Write a JSON object with exactly the keys {_listed(keys)}. Answer with the object alone."
    return prompt, [_kind("json", keys, "keys")], json.dumps({key: KEYS[key] for key in keys})


def _mixed(rng: random.Random) -> Drawn:
    noun, words, case = rng.choice(NOUNS.split()), rng.randint(4, 12), rng.choice(["upper", "lower"])
    forbidden = rng.choice(["a", "is", "and", "of", "it"])
    sentence = _sentence(rng, noun, words)
    constraints = [
        {"kind": "length", "words": words},
        _kind("include", [noun]),
        _kind("exclude", [forbidden]),
        {"kind": "case", "case": case},
        ONE_SENTENCE,
    ]
    prompt = (
        f'Write one sentence of exactly {words} words with the word "{noun}" but without the word "{forbidden}", '
        f"in {_letters(case)} letters only."
    )
    return prompt, constraints, sentence.upper() if case == "upper" else sentence.lower()


_DRAW = {
    "length": _length,
    "include": _include,
    "exclude": _exclude,
    "order": _order,
    "case": _case,
    "json": _json,
    "mixed": _mixed,
}


def _sentence(rng: random.Random, noun: str, words: int) -> str:
    """A sentence of 4 to 12 words about ``noun`` that uses none of ``a``, ``is``, ``and``, ``of`` and ``it``."""
    subject = rng.choice([["The", noun], ["The", rng.choice(ADJECTIVES.split()), noun]]) if words > 4 else ["The", noun]
    rest = words - len(subject) - 1

    fitting = [
        chosen
        for size in range(1, 4)
        for chosen in itertools.combinations(_MORE, size)
        if sum(len(p.split()) for p in chosen) == rest
    ]
    return " ".join([*subject, rng.choice(_VERBS), *rng.choice(fitting)]) + "."


def _kind(kind: str, words: list[str], name: str = "words") -> dict[str, Any]:
    return {"kind": kind, name: words}


def _listed(words: list[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _letters(case: str) -> str:
    return "capital" if case == "upper" else "small"
