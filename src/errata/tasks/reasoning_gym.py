"""The procedural generators of the package reasoning-gym (arXiv 2505.24760), each with its own scorer.

``reasoning-gym/spell_backward`` is one of its hundred generators. The generator's own arguments follow a ``?``, in YAML,
with ``&`` between them: ``reasoning-gym/chain_sum?max_terms=2&max_digits=1``. Two are errata's: ``seed``, and ``size``,
the number of rows of a split. A question's checksum decides its split, so train and test rows cannot overlap.
"""

from __future__ import annotations

import difflib
import functools
import json
import zlib
from typing import TYPE_CHECKING, Any

import yaml

from errata.feedback.reasoning_gym import ReasoningGymVerifier

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["entry", "load", "score", "split_of", "verifier"]

_SIZES = {"train": 1024, "test": 256}
_DRAWS_PER_ROW = 40
"""A small world runs out of new questions; then the split has fewer rows than were wanted."""
_EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")
"""Where an entry without an answer keeps one of the several right ones."""


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """The task's rows, the same on every call. Own column: ``draw``, the entry's number in the generator's stream.

    None is ever bad, so ``strict`` changes nothing. A small world gives fewer rows than were wanted.
    Raises ``ValueError`` for an unknown generator, argument or split, and for a ``path``: nothing is read from files.
    """
    from datasets import Dataset, Features, Value

    if path is not None:
        raise ValueError(f"path: {name} is made, not read; leave the path out")
    if split not in _SIZES:
        raise ValueError(f"split: {name} has {' and '.join(_SIZES)}, not {split!r}")
    _, _, size = _parsed(name)
    wanted = _SIZES[split] if size is None else size
    rows: dict[str, dict[str, Any]] = {}
    draw = 0
    while len(rows) < wanted and draw < wanted * _DRAWS_PER_ROW:
        found = entry(name, draw)
        question = str(found["question"]).strip()
        if split_of(question) == split and question not in rows:
            solution = _solution(name, found)
            rows[question] = {
                "problem_id": f"{name}/{split}/{len(rows)}",
                "prompt": [{"role": "user", "content": question}],
                "answer": solution or "",
                "reference": solution,
                "task": name,
                "draw": draw,
            }
        draw += 1
    if not rows:
        raise ValueError(
            f"task: {name} has no rows of the split {split!r} among {draw} draws; let its arguments vary more"
        )
    text = Value("string")  # also where no row has a reference, so that tasks can be concatenated
    columns = {"problem_id": text, "prompt": [{"role": text, "content": text}], "answer": text, "reference": text}
    return Dataset.from_list(list(rows.values()), features=Features({**columns, "task": text, "draw": Value("int64")}))


def verifier(name: str, **args: Any) -> ReasoningGymVerifier:
    """:class:`ReasoningGymVerifier` with ``feedback="difference"|"place"|"bit"`` and ``partial``."""
    _generator(name)  # a mistake in the name shows now, not in the first batch
    return ReasoningGymVerifier(score, **args)


def split_of(question: str) -> str:
    """``"test"`` for a fifth of all questions, else ``"train"``: holds for any number of rows ever drawn."""
    return "test" if zlib.crc32(question.encode()) % 5 == 0 else "train"


def entry(name: str, draw: int) -> dict[str, Any]:
    """The generator's entry of that number: ``question``, ``answer`` and ``metadata``; the same on every call."""
    found: dict[str, Any] = _generator(name)[draw]
    return found


def score(name: str, draw: int, answer: str) -> float:
    """What the generator's own scorer gives an answer, 0 to 1."""
    return float(_generator(name).score_answer(answer=answer, entry=_cached_entry(name, draw)))


@functools.lru_cache(maxsize=4096)
def _cached_entry(name: str, draw: int) -> dict[str, Any]:
    return entry(name, draw)


def _solution(name: str, found: dict[str, Any]) -> str | None:
    """An answer that the scorer calls right, where the entry has one."""
    metadata = found["metadata"]
    for answer in (found["answer"], *(metadata.get(key) for key in _EXAMPLES)):
        text = answer if isinstance(answer, str | None) else json.dumps(answer)
        if text is not None and float(_generator(name).score_answer(answer=text, entry=found)) >= 1:
            return str(text)
    return None


def _parsed(name: str) -> tuple[str, dict[str, Any], int | None]:
    """Generator, its arguments and errata's ``size``; ``seed`` is among the arguments."""
    generator, _, query = name.partition("/")[2].partition("?")
    args: dict[str, Any] = {"seed": 0}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        try:
            args[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not key or not equals:
            raise ValueError(f"task: {part!r} in {name!r} is not of the form argument=value")
    size = args.pop("size", None)
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"task: size in {name!r} must be a whole number of at least 1, got {size!r}")
    return generator, args, size


@functools.lru_cache(maxsize=32)
def _generator(name: str) -> Any:
    """The package's data set that draws this task's entries without an end."""
    generator, args, _ = _parsed(name)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            f"task: {name} needs the package reasoning-gym ({error}); pip install 'errata[reasoning-gym]'"
        ) from error
    if generator not in DATASETS:
        near = difflib.get_close_matches(generator, DATASETS, n=1, cutoff=0.4)
        hint = f"did you mean 'reasoning-gym/{near[0]}'?" if near else f"known are {', '.join(sorted(DATASETS))}"
        raise ValueError(f"task: reasoning-gym has no generator {generator!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(generator, size=2**31, **args)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"task: {name}: {' '.join(str(error).split())}") from error
