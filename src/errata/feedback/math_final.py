r"""Where in a completion its final answer stands: in the last ``\boxed{...}``, or after "the answer is"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from errata.feedback.math_text import restore_commands

__all__ = ["Final", "final_answer", "last_boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")


@dataclass(frozen=True, slots=True)
class Final:
    """The final answer's text, several where several boxes are one answer; or the problem with finding it."""

    texts: tuple[str, ...]
    boxed: bool
    problem: str = ""


def final_answer(text: str) -> Final:
    """The final answer of a completion without thinking; what is said last decides."""
    text = restore_commands(text)
    boxes = _boxes(text)
    if not boxes:
        return _said(text)
    _start, end, content = boxes[-1]
    after = text[end:] if content is not None else ""
    if content is not None and _REVOKED.match(after):
        later = _said(after)
        return later if later.texts else Final((), True, "the last boxed answer is taken back")
    later = _said(after)
    if (
        later.texts
        and re.search(r"[\d\\$]", later.texts[0])
        and len(later.texts[0]) < 60
        and not _STARTS_PROSE.match(later.texts[0])
    ):
        return later
    if content is None:
        return Final((), True, "the last \\boxed{ is not closed")
    if not content:
        return Final((), True, "the last \\boxed{} is empty")
    return Final(_chain(text, boxes), True)


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` of a text holds, braces matched; ``None`` if there is none that is closed."""
    contents = [content for _, _, content in _boxes(restore_commands(text)) if content is not None]
    return contents[-1] if contents else None


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """Start, end and content of the outermost boxes; the content of one that is not closed is ``None``."""
    boxes: list[tuple[int, int, str | None]] = []
    position = 0
    while match := _BOX.search(text, position):
        if text[match.end() : match.end() + 1] == "{":
            end = _closing(text, match.end() + 1)
            content = text[match.end() + 1 : end].strip() if end is not None else None
            position = len(text) if end is None else end + 1
        else:  # \boxed5 and \boxed B
            token = re.compile(r"[-+]?(?:[\w.,/]*\w|\\[A-Za-z]+)").match(text, match.end())
            content, position = (token[0], token.end()) if token else (None, match.end())
        boxes.append((match.start(), position, content))
    return boxes


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    return None


# What may stand between boxes that are one answer: "$x = \boxed{3}$ and $y = \boxed{4}$".
_BETWEEN = re.compile(
    r"""(?:[\s$,;&]|\\[()\[\],;: ]|\\q?quad|\\text\s*\{|\}|\\\\)*
        (?:(?:and|or|and\s+also)\b)?
        (?:[\s$,;&]|\\[()\[\],;: ]|\\q?quad|\})*
        (?P<name>[A-Za-z](?:_\{?\d\}?)?\s*=\s*)?""",
    re.VERBOSE,
)
_NAME_BEFORE = re.compile(r"(?:^|[\s$(\[])([A-Za-z](?:_\{?\d\}?)?)\s*=\s*$")


def _chain(text: str, boxes: list[tuple[int, int, str | None]]) -> tuple[str, ...]:
    """The last box with those before it that are joined to it by a comma, "and" or nothing."""
    first = len(boxes) - 1
    while first > 0 and boxes[first - 1][2] and _BETWEEN.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
        first -= 1
    chain = boxes[first:]
    contents = [content or "" for _, _, content in chain]
    if len(set(contents)) == 1:
        return (contents[0],)
    names = [_NAME_BEFORE.search(text[max(0, start - 20) : start]) for start, _, _ in chain]
    if all(names) and len({m[1] for m in names if m}) == len(chain):
        contents = [f"{m[1]} = {c}" if "=" not in c else c for m, c in zip(names, contents, strict=True) if m]
    return tuple(contents)


_ANCHOR = re.compile(
    r"(?:\b(?:final\s+|correct\s+|right\s+)?answer\b(?:\s+to\s+[^.:\n]{1,60}?)?\**\s*(?:\**\s*(?:is|would\s+be|must\s+be|equals)\b\s*\**:?|[:=：])"
    r"|<answer>)\s*(?:\**\s*)",
    re.IGNORECASE,
)
_REVOKED = re.compile(
    r"[\s$.,})*!?]*(?:\\text\s*\{)?\s*(?:(?:is|was|seems|looks)\s+(?:\w+\s+)?(?:wrong|incorrect|false|not\s+(?:right|correct))|\?)",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:wait|hmm|no,|actually|let me (?:re)?check|mistake|that(?:'s| is) (?:wrong|not right|incorrect)|incorrect)\b",
    re.IGNORECASE,
)
_STARTS_PROSE = re.compile(r"(?:the|a|an|that|not|in|to|by|obtained|given|found|as)\b", re.IGNORECASE)
_END = re.compile(r"\n|<|\?|[.!](?=\s|$|\*)|,?\s+(?:because|since|as|which|where|so|but|not|I hope)\b", re.IGNORECASE)


def _said(text: str) -> Final:
    """What the last "the answer is" says, up to the end of its sentence."""
    anchors = list(_ANCHOR.finditer(text))
    if not anchors:
        return Final((), False, "no final answer could be found")
    rest = text[anchors[-1].end() :]
    if math := re.match(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", rest, re.DOTALL):
        after = rest[math.end() :]
        joined = re.match(r"[\s.*]*(?:$|[.,;!\n]|I hope)", after)
        said, end = (next(g for g in math.groups() if g), math.end()) if joined else _sentence(rest)
    else:
        said, end = _sentence(rest)
    after = rest[end:]
    if re.match(r"\s*\?", after) or _DOUBT.search(after) or re.match(r"not\b", said, re.IGNORECASE):
        return Final((), False, "no final answer could be found")
    said = said.strip().strip("*").strip()
    return Final((said,), False) if said else Final((), False, "no final answer could be found")


def _sentence(rest: str) -> tuple[str, int]:
    match = _END.search(rest)
    end = match.start() if match else len(rest)
    return rest[:end], end
