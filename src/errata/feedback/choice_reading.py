r"""Which option a text chooses: a letter in an ``<answer>`` block, in ``\boxed{}``, in prose, or an option's own text.

Two options named are no choice, and a letter that is denied ("not A", "A is wrong") or is a word of its sentence
("A particle") names none.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["clean", "letter_in_block", "letter_in_prose"]

Options = Mapping[str, str]
"""Each option's letter with its text, empty if it has none."""

_FONT = re.compile(
    r"\\(?:boxed|fbox|text|mathrm|textbf|mathbf|textit|mathit|textrm|mathsf|bm|boldsymbol)\s*\{([^{}]*)\}"
)
_BARE = re.compile(r"\\(?:boxed|fbox)\s+(?=[A-Za-z]\b)")


def clean(text: str) -> str:
    """Without signs of the end, escapes and look-alikes: ``&lt;answer&gt;Ｂ<|im_end|>`` is ``<answer>B``."""
    text = html.unescape(text)
    text = re.sub(r"<\|[^|<>]*\|>|</?s>", "", text)
    text = "".join(unicodedata.normalize("NFKC", c) if "\uff00" <= c <= "\uffef" else c for c in text)
    text = text.replace("\u00a0", " ").replace("。", ". ").replace("\\n", "\n")
    return re.sub(r"<(/?)\s*answer\s*>?", r"<\1answer>", text, flags=re.IGNORECASE)


def _plain(text: str) -> str:
    """Without emphasis, fonts, boxes, dollars, quotes: ``$\\mathbf{(B)}$`` is ``(B)``; what is struck out is gone."""
    text = re.sub(r"~~.*?~~", " ", text)
    for _ in range(4):
        text = _FONT.sub(r"\1", text)
    text = _BARE.sub("", text)
    text = re.sub(r"\\[()\[\]]|[$`\"“”⟨⟩]", "", text)
    text = re.sub(r"(\*\*|__|\*|_)(?=\S)([^*_\n]+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<!\w)\*\*|\*\*(?!\w)|<(?=[A-Za-z]>)|(?<=<[A-Za-z])>", "", text)
    text = re.sub(r"(?<![\w\\])\{([^{}]*)\}", r"\1", text)
    return re.sub(r"<([A-Za-z])>|(?<!\w)([A-Za-z])>", lambda m: m[1] or m[2], text).strip()


# -- An option's own text --


def _norm(text: str) -> str:
    text = _plain(text).casefold().rstrip(" .,;").strip()
    text = re.sub(r"^(?:the|an?)\s+(?=\w{2})", "", text)
    text = re.sub(r"(?<=\d)\s+(?=[a-zµ°%])", "", text)
    return " ".join(text.split())


def _by_text(content: str, options: Options) -> str | None:
    """The only option whose text ``content`` is; an article and the plural's s are no difference."""
    said = _norm(content)
    texts = {letter: _norm(text) for letter, text in options.items() if text.strip()}
    for said_so in ({said}, {f"{said}s", said.removesuffix("s")}):
        found = [letter for letter, text in texts.items() if text in said_so]
        if found:
            return found[0] if len(found) == 1 else None
    return None


# -- Letters that are named and letters that are denied --

_GOES_ON = (
    r"(?:because|since|as\b|is\b|for\b|and\b|or\b|not\b|but\b|rather|instead|due\b|given|which\b|by\b|would|seems"
    r"|\(|\[|'|’)"
)
_CUE = (
    r"(?:\b(?:options?|choices?|answers?|letter|choose|chose|select|pick|with|is|be|but|it's|are|both|either|ans|antwort)\b\s*:?"
    r"|[=:→]|=>|->|选择?|选项|是|答案)"
)
_DENIED = (
    r"\b(?:not|cannot be|can't be|isn't|rather than|instead of|unlike|except|exclude|excluding|eliminate|reject|nor|neither)"
    r"\s+(?:the\s+)?(?:options?\s+|choices?\s+|answer\s+)?[(\[]?({0})\b"
    r"|[(\[]?\b({0})\b[)\].]*\s+(?:is|are|was|seems|must be|looks)\s+(?:also\s+|clearly\s+|as a matter of fact\s+)?"
    r"(?:not\b|wrong|incorrect|false|out\b|impossible)"
    r"|[(\[]?\b({0})\b[)\]]*\s+(?:as a matter of fact\s+)?(?:wrong|incorrect)"
    r"|[(\[]?\b({0})\b[)\]]*\s*\?"
)


@dataclass(frozen=True, slots=True)
class _Named:
    chosen: frozenset[str]
    denied: frozenset[str]


def _named(span: str, letters: str) -> _Named:
    """The letters that a span of plain text names as its choice, and those it denies."""
    one = f"[{letters}]"
    denied = {
        g for m in re.finditer(_DENIED.format(one), span, re.IGNORECASE) for g in m.groups() if g and g in letters
    }
    kept = re.sub(_DENIED.format(one), lambda m: " " * len(m[0]), span, flags=re.IGNORECASE)
    follows = rf"(?=\s*(?:$|[).:,;!\]}}/&|–—-]|\n|{_GOES_ON})|\s+[(\[]?{one}\b)"
    patterns = (
        rf"(?:\A|\n)[\s(\[<\-*•→=>]*({one})\b{follows}",
        rf"(?i:{_CUE})[\s(\[*'‘]*({one})\b{follows}",
        rf"\b{one}\b[)\]]*\.?,?\s*(?:/|&|,|\band\b|\bor\b)\s*(?:or\s+|and\s+)?(?:(?i:option)\s+)?[(\[]?({one})\b{follows}",
        rf"(?i:\b(?:and|or)\s+(?:option|choice)s?)\s+[(\[]?({one})\b",
        rf"(?:\s|\A)[(\[]({one})[)\]]",
        rf"[.;]\s*({one})[.)]*\s*\Z",
        rf"(?:[,;.]\s+|\n\s*)({one})[:)]\s",
        rf"\A\s*({one})\s*\Z",
        rf"\A\s*\S+\s+({one})[.)]?\s*\Z",
    )
    chosen = {
        m[1]
        for p in patterns
        for m in _overlapping(p, kept)
        if not (
            m[1] == "A"
            and re.match(r"\s+[a-z]", kept[m.end(1) :])
            and not re.match(rf"\s*{_GOES_ON}", kept[m.end(1) :])
        )
    }
    return _Named(frozenset(chosen), frozenset(denied - chosen))


def _overlapping(pattern: str, text: str) -> list[re.Match[str]]:
    compiled, found, at = re.compile(pattern), [], 0
    while match := compiled.search(text, at):
        found.append(match)
        at = max(match.start() + 1, at + 1)
    return found


def _only(named: _Named) -> str | None:
    return next(iter(named.chosen)) if len(named.chosen) == 1 else None


# -- A block --


def letter_in_block(content: str, options: Options) -> str | None:
    """The option that an ``<answer>`` block, a box or a last line chooses; ``None`` if it is none or more than one."""
    letters = "".join(options)
    content = re.sub(r"<think>.*?(?:</think>|$)", "", content, flags=re.DOTALL)
    plain = re.sub(r"^[\s→=>*\-•]+(?=\(?[A-Za-z]\b)", "", _plain(content)).strip()
    if match := re.fullmatch(r"[(\[<'‘]*([A-Za-z])['’\s)\].:,;!>]*", plain):
        letter = match[1].upper()
        return letter if letter in letters else _by_text(content, options)
    if (letter := _by_text(content, options)) is not None:
        return letter
    match = re.fullmatch(rf"(?i:option_)?[(\[]?([{letters}])[)\]]?[\s:.)\-–—]+(.+)", plain, re.DOTALL)
    if match and _norm(match[2]) and _norm(match[2]) == _norm(options[match[1]]):
        return match[1]
    if match := re.fullmatch(r"(?:option|choice|answer|letter)[\s_:]+\(?([a-z])\)?", plain, re.IGNORECASE):
        return match[1].upper() if match[1].upper() in letters else None
    return _only(_named(plain, letters))


# -- Prose --

_ANSWER = (
    r"\b(?:answer|ans|option|choice|antwort|respuesta|réponse|resposta|risposta|solution)\b\**\s*"
    r"(?:\**\s*(?:is|was|would\s+be|must\s+be|should\s+be|has\s+to\s+be|will\s+be|cannot\s+be|can't\s+be|isn't|ist|es|est)\b\**:?"
    r"|\s*[:=])|答案\s*(?:是|为|:)?|选"
)
_CHOOSE = r"\b(?:choose|select|pick|go(?:ing)?\s+with|chose|opt\s+for|it's|it\s+is(?=\s+[(\[]?[A-Z][)\]]?\s*[.,;!]?\s*(?:$|\n)))"


def letter_in_prose(text: str, options: Options) -> str | None:
    """The option that the last statement of a choice names: a box, "the answer is B", "B is correct", a last line."""
    letters = "".join(options)
    text = re.sub(r"(?<!\w)__|__(?!\w)", "**", text)
    denied: set[str] = set()
    for _, span, kind in sorted(_statements(text, letters), reverse=True):
        if kind in ("box", "line"):
            if (letter := letter_in_block(span, options)) is not None:
                return None if letter in denied else letter
            named = _named(_plain(span), letters)
            if len(named.chosen) > 1 and (kind == "box" or re.match(rf"[(\[]?[{letters}]\b", _plain(span))):
                return None
            denied |= named.denied
            continue
        plain = _plain(span)
        named = _named(plain, letters)
        by_text = _by_text(plain.removeprefix("answer is "), options)
        if len(named.chosen) > 1 and by_text is None:
            return None
        letter = by_text or _only(named) or _small_letter(plain, letters)
        if letter is not None:
            return None if letter in denied else letter
        denied |= named.denied
    return None


def _statements(text: str, letters: str) -> list[tuple[int, str, str]]:
    """All places where a choice may be stated, each with the text that states it."""
    found: list[tuple[int, str, str]] = []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}|([A-Za-z])\b)", text):
        follows = text[match.end() :].lstrip(" $.")[:1]
        if follows != "?":
            found.append((match.start(), match[1] if match[1] is not None else match[2], "box"))
    for match in re.finditer(f"(?:{_ANSWER})|(?:{_CHOOSE})", text, re.IGNORECASE):
        found.append((match.start(), _sentence(match[0], text[match.end() :]), "said"))
    correct = (
        rf"(?:\b(?i:options?|choices?|both)\s+)?(?:[(\[]?\b[{letters}]\b[)\].]*\s*(?:,|and|or)\s*)*[(\[*]*\b[{letters}]\b[)\].*]*"
        r"\s+(?:is|are|must\s+be|seems)\s+(?:the\s+|both\s+|clearly\s+|indeed\s+|definitely\s+)*(?:only\s+)?(?:correct|right|true|best|answer)\b"
    )
    for match in re.finditer(correct, text):
        found.append((match.start(), "answer is " + re.split(r"\s+(?:is|are|must|seems)\s", match[0])[0], "said"))
    lines = text.rstrip().rpartition("\n")
    last = lines[2].strip()
    if last and len(last) < 300:
        plain = _plain(last)
        if (
            re.fullmatch(r"[(\[]?[A-Za-z][)\].!]*", plain)
            or re.match(rf"[(\[]?[{letters}][)\].:]+\s", plain)
            or (lines[1] and "\n" in text.strip())
        ):
            found.append((len(lines[0]) + 1, last, "line"))
    return found


def _sentence(cue: str, rest: str) -> str:
    """What follows the words "the answer is", with them, up to the sentence's end."""
    rest = rest.lstrip(" :\n")
    end = re.search(
        r"\n|(?<![(\s*][A-Z])(?<!^[A-Z])[.!?](?=\s|$)|(?<=[A-Z])[.!]\s+(?=(?:[A-Z][a-z]|[A-Z]\s+(?:is|was)\b))", rest
    )
    span = rest[: end.end() if end else len(rest)]
    lead = "not " if re.search(r"(?:not|cannot|can't|isn't)\b", cue, re.IGNORECASE) else "answer is "
    return lead + span


def _small_letter(plain: str, letters: str) -> str | None:
    """``the answer is b``, but not ``the answer is a particle``."""
    match = re.fullmatch(r"answer is \(?([a-z])\)?[.!]?\s*", plain)
    return match[1].upper() if match and match[1].upper() in letters else None
