"""Any TRL reward function as a verifier: what it may return, and where it comes from.

A verifier is called like a TRL reward function, ``verifier(prompts=..., completions=..., **columns)``, and returns one
float, ``None``, dict or :class:`~errata.records.Verdict` per completion, mixed as it likes, at once or as a coroutine.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from errata.records import Verdict

__all__ = [
    "answer_text",
    "as_verdicts",
    "combine",
    "completion_text",
    "load_function",
    "load_verifier",
    "verifier_name",
]

Verifier = Callable[..., Any]

_FIELDS = tuple(f.name for f in fields(Verdict))


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the policy itself wrote: the text as it is, or a chat's assistant turns joined by newlines, no tool's turns.

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
    """A readable name for messages and logs; of a ``functools.partial`` the inner function's."""
    inner = getattr(verifier, "func", verifier)
    return str(getattr(inner, "__name__", type(inner).__name__))


def as_verdicts(values: Iterable[Any], *, n: int, name: str) -> list[Verdict]:
    """What the verifier ``name`` returned for ``n`` completions, as verdicts.

    A number or bool is a score, ``None`` is not judged, a dict has a verdict's fields as keys and at least ``score``. A
    score that is not finite becomes ``Verdict(None, kind="error")``: the verifier failed on that completion.
    Raises ``ValueError`` naming the verifier, the completion and the key where a value is none of these, or the
    verifier and both numbers where there are not ``n``.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(
            f"verifier {name!r} returned {values!r:.100}; return a list with one score or verdict per completion"
        )
    items = list(values)
    if len(items) != n:
        raise ValueError(
            f"verifier {name!r} returned {len(items)} verdicts for {n} completions; return exactly one each"
        )
    return [_as_verdict(value, f"verifier {name!r}, completion {index}") for index, value in enumerate(items)]


def _as_verdict(value: Any, where: str) -> Verdict:
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in _FIELDS]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), _FIELDS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_FIELDS)}"
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; {mend}")
        if "score" not in value:
            raise ValueError(f"{where}: the dict has no 'score'; give one, None for a completion that was not judged")
        verdict = Verdict(**value)
    else:
        verdict = value if isinstance(value, Verdict) else Verdict(value)
    for key, kind in (("feedback", str), ("kind", str), ("leaks_answer", bool), ("info", Mapping)):
        if not isinstance(getattr(verdict, key), kind):
            raise ValueError(f"{where}: {key} must be a {kind.__name__}, not {getattr(verdict, key)!r:.100}")
    score = verdict.score
    if score is None:
        return verdict
    if hasattr(score, "item"):  # a NumPy scalar or a tensor's element
        score = score.item()
    if not isinstance(score, int | float):
        raise ValueError(f"{where}: the score must be a number, None, a dict or a Verdict, not {verdict.score!r:.100}")
    if not math.isfinite(score):
        return replace(verdict, score=None, kind="error", info={**verdict.info, "error": f"the score is {score}"})
    return replace(verdict, score=float(score))


def combine(verifiers: Sequence[Verifier], weights: Sequence[float] | None = None) -> Verifier:
    """One verifier of several: the weighted sum of their scores, their feedback joined, each one's score in ``info``.

    As in TRL a ``None`` is left out of the sum and only all ``None`` is ``None``; but where one *failed*
    (``kind="error"``) the rollout is not judged: half a sum must not stand beside the group's whole ones. Weights are 1
    by default.
    Raises ``ValueError`` if there is no verifier or the numbers of verifiers and weights differ.
    """
    parts = list(verifiers)
    shares = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if not parts or len(parts) != len(shares):
        raise ValueError(
            f"weights: {len(shares)} for {len(parts)} verifiers; give one weight to each of at least one verifier"
        )
    names = [verifier_name(p) for p in parts]
    labels = [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]

    def merge(returned: Sequence[Any], n: int) -> list[Verdict]:
        judged = [as_verdicts(values, n=n, name=name) for values, name in zip(returned, labels, strict=True)]
        return [_merged(row, shares, labels) for row in zip(*judged, strict=True)]

    def combined(*, completions: Sequence[Any], **arguments: Any) -> list[Verdict]:
        return merge([p(completions=completions, **arguments) for p in parts], len(completions))

    async def combined_async(*, completions: Sequence[Any], **arguments: Any) -> list[Verdict]:
        returned = [p(completions=completions, **arguments) for p in parts]
        return merge([await r if inspect.isawaitable(r) else r for r in returned], len(completions))

    chosen: Verifier = combined_async if any(_is_async(p) for p in parts) else combined
    chosen.__name__ = "+".join(names)
    chosen.limits_own_time = all(getattr(p, "limits_own_time", False) for p in parts)  # type: ignore[attr-defined]
    return chosen


def _is_async(verifier: Verifier) -> bool:
    call = getattr(verifier, "func", verifier)
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def _merged(verdicts: Sequence[Verdict], weights: Sequence[float], labels: Sequence[str]) -> Verdict:
    info = {label: {"score": v.score, **v.info} for label, v in zip(labels, verdicts, strict=True)}
    errors = [v for v in verdicts if v.kind == "error"]
    if errors:
        return Verdict(None, kind="error", info={"error": errors[0].info.get("error", "a verifier failed"), **info})
    told = [v for v in verdicts if v.feedback.strip()]
    scores = [w * v.score for w, v in zip(weights, verdicts, strict=True) if v.score is not None]
    return Verdict(
        math.fsum(scores) if scores else None,
        feedback="\n\n".join(v.feedback.strip() for v in told),
        kind="+".join(dict.fromkeys(v.kind for v in told if v.kind)),
        leaks_answer=any(v.leaks_answer for v in told),
        info=info,
    )


def load_verifier(spec: str) -> Verifier:
    """The verifier that ``"package.module:function"`` or ``"path/to/file.py:function"`` names; see :func:`load_function`."""
    return load_function(spec, "verifier")


def load_function(spec: str, argument: str) -> Callable[..., Any]:
    """The function or class that ``"package.module:function"`` or ``"path/to/file.py:function"`` names, a setting
    ``argument``'s value.

    Raises ``ValueError`` saying what is wrong: the form, the file or module (and why it does not import) or the name.
    """
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not attribute:
        raise ValueError(f"{argument}: {spec!r} is not of the form 'package.module:function' or 'path.py:function'")
    try:
        module = _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise ValueError(f"{argument}: no file {source!r} (looked in {Path.cwd()})") from None
    except Exception as error:
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
    # Once for all that is named in it: a verifier must find its rollouts' environments to be of the class it knows.
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
