"""Any TRL reward function as a verifier: how its return values become verdicts, and how it is loaded by name.

A verifier is called like a TRL reward function, ``verifier(prompts=..., completions=..., **columns)``. It returns one
float, ``None``, dict or :class:`~errata.records.Verdict` per completion, mixed, directly or as a coroutine.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import fields, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from errata.records import Verdict

__all__ = [
    "answer_text",
    "as_verdicts",
    "combine_verdicts",
    "completion_text",
    "load_function",
    "load_verifier",
    "verifier_name",
]

Verifier = Callable[..., Any]

LARGEST = 1e15
"""Scores beyond are errors: the squares of a group's scores would not fit a float32."""
MAX_FEEDBACK = 20_000
"""Characters of a verdict's feedback that are kept: more would fill teacher prompts and logs."""
MAX_INFO = 100_000
"""Characters of a verdict's ``info`` as JSON; a larger one is left out."""

_FIELDS = tuple(f.name for f in fields(Verdict))


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The policy's own text: a text as it is, or a chat's assistant turns joined by newlines, without tool turns.

    Raises ``ValueError`` for anything else.
    """
    if isinstance(completion, str):
        return completion
    try:
        turns = [m for m in completion if m.get("role", "assistant") == "assistant"]
        return "\n".join(text for text in map(_content_text, turns) if text)
    except (TypeError, AttributeError):
        raise ValueError(f"completion: neither a text nor a list of chat messages: {completion!r:.200}") from None


def answer_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """:func:`completion_text` without the thinking: what follows the last ``</think>``, or precedes one never ended."""
    text = completion_text(completion)
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def _content_text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")


def verifier_name(verifier: Verifier) -> str:
    """A readable name for messages and logs; for a ``functools.partial`` the inner function's."""
    inner = getattr(verifier, "func", verifier)
    return str(getattr(inner, "__name__", type(inner).__name__))


def as_verdicts(values: Iterable[Any], *, n: int, name: str) -> list[Verdict]:
    """The verdicts of ``n`` completions from the return value of the verifier ``name``.

    A number or bool is a score. ``None`` means not judged. A dict has a verdict's fields as keys, and at least ``score``. A
    score that is not finite becomes ``Verdict(None, kind="error")``: the verifier failed on that completion. Feedback of more
    than ``MAX_FEEDBACK`` characters loses its middle; halves of characters (lone surrogates) in it become U+FFFD.

    Raises:
        ValueError: a value is none of these (naming the verifier, the completion and the key), or there are not ``n``.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(
            f"verifier {name!r} returned {values!r:.100}; return a list with one score or verdict per completion"
        )
    items = list(islice(values, n + 1))
    if len(items) != n:
        many = len(values) if isinstance(values, Sized) else len(items)
        raise ValueError(f"verifier {name!r} returned {many} verdicts for {n} completions; return exactly one each")
    return [_as_verdict(value, f"verifier {name!r}, completion {index}") for index, value in enumerate(items)]


def _as_verdict(value: Any, where: str) -> Verdict:
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in _FIELDS]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), _FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_FIELDS)}"
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; {hint}")
        if "score" not in value:
            raise ValueError(f"{where}: the dict has no 'score'; give one, None for a completion that was not judged")
        verdict = Verdict(**value)
    else:
        verdict = value if isinstance(value, Verdict) else Verdict(value)
    for key, kind in (("feedback", str), ("kind", str), ("leaks_answer", bool), ("info", Mapping)):
        if not isinstance(getattr(verdict, key), kind):
            raise ValueError(f"{where}: {key} must be a {kind.__name__}, not {getattr(verdict, key)!r:.100}")
    turns = verdict.turn_feedback
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not all(isinstance(text, str) for text in turns):
        raise ValueError(f"{where}: turn_feedback must be a list with one text for each turn, not {turns!r:.100}")
    verdict = replace(
        verdict,
        feedback=_shortened(verdict.feedback),
        turn_feedback=tuple(map(_shortened, turns)),
        info=_kept_info(verdict.info),
    )
    score: Any = verdict.score
    if score is None:
        return verdict
    try:
        if hasattr(score, "item"):  # a NumPy scalar or a tensor's element
            score = score.item()
        if not isinstance(score, int | float):
            raise TypeError
        score = float(score)
    except OverflowError:  # a whole number larger than any float
        score = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{where}: the score must be a number, None, a dict or a Verdict, not {verdict.score!r:.100}"
        ) from None
    if not abs(score) <= LARGEST:
        return replace(verdict, score=None, kind="error", info={**verdict.info, "error": f"the score is {score}"})
    return replace(verdict, score=score)


def _shortened(text: str) -> str:
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    half = MAX_FEEDBACK // 2
    return text if len(text) <= MAX_FEEDBACK else f"{text[:half]} [...] {text[-half:]}"


def _kept_info(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """``info``, unless it cannot be written as JSON or is very long: then a note in its place."""
    if not info:
        return info
    try:
        size = len(json.dumps(dict(info), default=str, skipkeys=True))
    except Exception as error:  # it refers to itself, is nested too deeply, or holds an object that cannot be shown
        return {"left_out": f"info cannot be written as JSON: {type(error).__name__}: {error!s:.200}"}
    return info if size <= MAX_INFO else {"left_out": f"info of {size:,} characters"}


def combine_verdicts(verdicts: Sequence[Verdict], weights: Sequence[float]) -> Verdict:
    """One verdict of several on the same rollout: the weighted sum of the scores given, and all feedback, a line each.

    The rule is TRL's, whose advantages are of the same sums: a score that was not given, whether ``None`` or because the
    verifier failed, is left out, and without any score the rollout is not judged.

    Raises ``ValueError`` where the numbers of verdicts and weights differ.
    """
    if len(verdicts) != len(weights):
        raise ValueError(f"weights: {len(weights)} for {len(verdicts)} verifiers; give one weight to each")
    if len(verdicts) == 1 and weights[0] == 1.0:
        return verdicts[0]
    scores = [w * v.score for v, w in zip(verdicts, weights, strict=True) if v.score is not None]
    with_text = [v for v in verdicts if v.feedback.strip() and v.kind != "error"]
    errors = [v for v in verdicts if v.kind == "error"]
    if not scores:
        return errors[0] if errors else Verdict(None)
    return Verdict(
        math.fsum(scores),
        feedback="\n".join(v.feedback.strip() for v in with_text),
        kind="+".join(dict.fromkeys(v.kind for v in with_text if v.kind)),
        leaks_answer=any(v.leaks_answer for v in with_text),
        info={key: value for v in verdicts for key, value in v.info.items()},
        turn_feedback=tuple(
            "\n".join(text.strip() for text in texts if text.strip())
            for texts in zip_longest(*(v.turn_feedback for v in verdicts), fillvalue="")
        ),
    )


def load_verifier(spec: str) -> Verifier:
    """The verifier that ``"package.module:function"`` or ``"path/to/file.py:function"`` names; see :func:`load_function`."""
    return load_function(spec, "verifier")


def load_function(spec: str, argument: str) -> Callable[..., Any]:
    """The function or class that ``"package.module:function"`` or ``"path/to/file.py:function"`` names.

    Args:
        spec: the name.
        argument: the setting that holds it, for error messages.
    Raises:
        ValueError: a wrong form, a missing file, a module that does not import (and why), or a missing name.
    """
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not attribute:
        raise ValueError(f"{argument}: {spec!r} is not of the form 'package.module:function' or 'path.py:function'")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise ValueError(f"{argument}: no file {source!r} (looked in {Path.cwd()})") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{argument}: {source!r} does not import: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, [k for k in vars(module) if not k.startswith("_")], n=1)
        raise ValueError(
            f"{argument}: {source!r} has no {attribute!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if not callable(found):
        raise ValueError(f"{argument}: {spec!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _module_of_file(path: Path) -> Any:
    path = path.resolve(strict=True)
    return _module_as_written(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _module_as_written(path: Path, written: int) -> Any:
    # Loaded once: a verifier and an environment of one file must refer to the same classes.
    name = f"errata_verifier_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
