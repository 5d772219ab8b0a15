"""Problems on texts."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases(["level"], ["stone"], [""], ["Anna"], ["a man"], ["xx"])
def is_mirror(text: str) -> bool:
    """Say whether the text reads the same backwards. Capital and small letters differ, and spaces count."""
    return text == text[::-1]


@cases(["A man, a plan, a canal: Panama"], ["no lemons"], [""], ["Was it a car?"], ["!!"], ["No lemon, no melon"])
def is_mirror_of_letters(text: str) -> bool:
    """Say whether the letters and digits of the text read the same backwards, with capital and small letters taken as equal. All else is ignored."""
    kept = [c.lower() for c in text if c.isalnum()]
    return kept == kept[::-1]


@cases(["banana"], ["sky"], [""], ["AEIOU"], ["Queue up"], ["rhythm"])
def count_vowels(text: str) -> int:
    """Return how many of the letters a, e, i, o and u, small or capital, the text holds."""
    return sum(c in "aeiou" for c in text.lower())


@cases(["hello world"], ["a"], [""], ["  two  spaces "], ["x y z"], ["abc def ghi"])
def reverse_each_word(text: str) -> str:
    """Reverse every word of the text. Words are separated by spaces, and all spaces stay where they are between words."""
    return " ".join(word[::-1] for word in text.split(" "))


@cases(["the quick fox"], ["one"], [""], ["  a  b "], ["to be or not"], ["x y"])
def words_backwards(text: str) -> str:
    """Return the words of the text in reverse order, with one space between them. Words are separated by one or more spaces."""
    return " ".join(reversed(text.split()))


@cases(["aaabccd"], ["abc"], [""], ["zzzzzzzzzzzz"], ["aab aa"], ["a"])
def run_lengths(text: str) -> str:
    """Replace every run of equal characters by the character and its number, such as "a3b1" for "aaab"."""
    from itertools import groupby

    return "".join(f"{c}{len(list(run))}" for c, run in groupby(text))


@cases(["a3b1c2"], ["z1"], [""], ["x12"], ["a2b10"], ["q0r2"])
def expand_runs(text: str) -> str:
    """The text consists of letters, each followed by a decimal number. Repeat each letter that many times and return the result."""
    import re

    return "".join(letter * int(n) for letter, n in re.findall(r"([a-zA-Z])(\d+)", text))


@cases(["abcabcbb"], ["bbbb"], [""], ["pwwkew"], ["abcdef"], ["dvdf"])
def longest_without_repeat(text: str) -> int:
    """Return the length of the longest piece of neighbouring characters in which no character occurs twice."""
    best, start, seen = 0, 0, {}
    for i, c in enumerate(text):
        if c in seen and seen[c] >= start:
            start = seen[c] + 1
        seen[c] = i
        best = max(best, i - start + 1)
    return best


@cases(["swiss"], ["aabb"], [""], ["level"], ["abcab"], ["zz y"])
def first_single(text: str) -> str:
    """Return the first character that occurs exactly once in the text, or an empty text if there is none."""
    return next((c for c in text if text.count(c) == 1), "")


@cases(["mississippi"], ["abc"], ["zzy"], ["hello world"], ["a"], ["bbaa"])
def most_common_letter(text: str) -> str:
    """Return the character that occurs most often in the text, which is not empty. Of several the one that comes first in the alphabet of character codes."""
    return min(set(text), key=lambda c: (-text.count(c), c))


@cases(["listen", "silent"], ["rat", "car"], ["", ""], ["aab", "abb"], ["Abc", "cba"], ["dusty", "study"])
def same_letters(a: str, b: str) -> bool:
    """Say whether the two texts consist of the same characters, each equally often. Capital and small letters differ."""
    return sorted(a) == sorted(b)


@cases([["eat", "tea", "tan", "ate", "nat"]], [["a"]], [[]], [["ab", "ba", "abc"]], [["x", "y", "x"]], [["no", "on", "oon"]])
def letter_groups(words: list[str]) -> list[list[str]]:
    """Group words that consist of the same letters. Groups stand in the order of their first words, and words in a group in their order in the list."""
    groups = {}
    for word in words:
        groups.setdefault("".join(sorted(word)), []).append(word)
    return list(groups.values())


@cases(["Hello", 3], ["xyz", 1], ["abc", 0], ["Zoo!", 27], ["a-b", 26], ["Caesar", -3])
def shift_letters(text: str, n: int) -> str:
    """Move every letter from a to z n places on in the alphabet, from z on to a again; capital letters likewise. Other characters stay. n may be negative."""
    moved = ""
    for c in text:
        if "a" <= c <= "z" or "A" <= c <= "Z":
            first = ord("a") if c.islower() else ord("A")
            c = chr((ord(c) - first + n) % 26 + first)
        moved += c
    return moved


@cases(["abc xyz"], ["Hello"], [""], ["A1b2"], ["zyx"], ["Middle!"])
def mirror_alphabet(text: str) -> str:
    """Replace a by z, b by y, c by x and so on, capital letters likewise. Other characters stay."""
    moved = ""
    for c in text:
        if "a" <= c <= "z":
            c = chr(ord("a") + ord("z") - ord(c))
        elif "A" <= c <= "Z":
            c = chr(ord("A") + ord("Z") - ord(c))
        moved += c
    return moved


@cases(["{[()]}"], ["(]"], [""], ["(()"], ["a(b)c[d]"], ["}{"])
def brackets_match(text: str) -> bool:
    """Say whether every opening bracket out of ( [ { is closed by its own kind in the right order, and none is closed that was not opened. Other characters are ignored."""
    pairs, stack = {")": "(", "]": "[", "}": "{"}, []
    for c in text:
        if c in "([{":
            stack.append(c)
        elif c in pairs and (not stack or stack.pop() != pairs[c]):
            return False
    return not stack


@cases(["(()(()))"], ["()"], [""], ["((()))()"], ["abc"], ["(a(b)(c(d)))"])
def bracket_depth(text: str) -> int:
    """Return how deep round brackets are nested at most. The text's brackets match."""
    depth = deepest = 0
    for c in text:
        depth += (c == "(") - (c == ")")
        deepest = max(deepest, depth)
    return deepest


@cases([["flower", "flow", "flight"]], [["dog", "car"]], [["same"]], [["", "a"]], [["inter", "internet", "interval"]], [["a", "a"]])
def common_start(words: list[str]) -> str:
    """Return the longest text with which all words begin. The list is not empty."""
    shortest = min(words, key=len)
    for i, c in enumerate(shortest):
        if any(word[i] != c for word in words):
            return shortest[:i]
    return shortest


@cases(["some_variable_name"], ["x"], [""], ["a_b_c"], ["already"], ["two__lines"])
def to_camel(name: str) -> str:
    """Turn a name with underscores into one with capitals: "some_name" becomes "someName". The first word stays small; empty words between underscores are dropped."""
    words = [word for word in name.split("_") if word]
    return "".join(word if i == 0 else word[0].upper() + word[1:] for i, word in enumerate(words))


@cases(["someVariableName"], ["x"], [""], ["aBC"], ["already"], ["HttpServer"])
def to_snake(name: str) -> str:
    """Turn a name with capitals into small letters with underscores: every capital becomes its small letter with an underscore before it, but none at the beginning."""
    snake = ""
    for c in name:
        snake += f"_{c.lower()}" if c.isupper() else c
    return snake.lstrip("_")


@cases(["the cat and the dog"], ["One one ONE"], [""], ["a b a c b a"], ["x"], ["to be or not to be"])
def word_counts(text: str) -> dict[str, int]:
    """Return how often each word occurs. Words are separated by spaces and compared in small letters."""
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


@cases(["It is a very long day"], ["a bb cc"], ["one"], ["same size word"], ["I am"], ["the longest wins always"])
def longest_word(text: str) -> str:
    """Return the longest word of the text, the first of several. Words are separated by spaces, and there is at least one."""
    return max(text.split(), key=len)


@cases(["hello wide world", 8], ["a b c", 1], ["", 5], ["one two three four", 9], ["abc", 3], ["to be or not to be", 5])
def wrap_words(text: str, width: int) -> list[str]:
    """Break the text into lines of at most `width` characters between words, each line as long as possible, with one space between words. No word is longer than the width."""
    lines = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


@cases(["abc", 6], ["abcd", 7], ["", 2], ["hello", 5], ["ab", 3], ["x", 4])
def centered(text: str, width: int) -> str:
    """Pad the text with points on both sides to the given width. If the number of points is odd, the right side gets one more. The text is at most as long as the width."""
    left = (width - len(text)) // 2
    return "." * left + text + "." * (width - len(text) - left)


@cases(["kitten", "sitting"], ["abc", "abc"], ["", "xy"], ["flaw", "lawn"], ["a", "b"], ["sunday", "saturday"])
def edit_distance(a: str, b: str) -> int:
    """Return the smallest number of single-character insertions, deletions and replacements that turn the first text into the second."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@cases(["ABCBDAB", "BDCABA"], ["abc", "xyz"], ["", "a"], ["axbxc", "abc"], ["aaaa", "aa"], ["stone", "longest"])
def common_sequence(a: str, b: str) -> int:
    """Return the length of the longest sequence of characters that occurs in both texts in the same order, not necessarily side by side."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], previous + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@cases(["babad"], ["abc"], [""], ["forgeeksskeegfor"], ["aaaa"], ["xabay"])
def longest_mirror(text: str) -> int:
    """Return the length of the longest piece of neighbouring characters that reads the same backwards."""
    n = len(text)
    return max((j - i for i in range(n) for j in range(i + 1, n + 1) if text[i:j] == text[i:j][::-1]), default=0)


@cases(["aabbb", "ab"], ["hello", "l"], ["", "a"], ["aaaa", "aa"], ["banana", "ana"], ["abcabc", "abc"])
def count_overlapping(text: str, piece: str) -> int:
    """Return at how many positions the piece occurs in the text. Occurrences may overlap. The piece is not empty."""
    return sum(text.startswith(piece, i) for i in range(len(text)))


@cases(["3[ab]"], ["2[a3[b]]"], ["abc"], ["2[x]y3[z]"], ["10[a]"], ["1[1[q]]"])
def unpack(text: str) -> str:
    """A number before square brackets says how often what is inside is repeated: "2[ab]" is "abab". Brackets may be nested. Return the text written out."""
    import re

    while "[" in text:
        text = re.sub(r"(\d+)\[([a-z]*)\]", lambda match: int(match[1]) * match[2], text)
    return text


@cases(["192.168.0.1"], ["256.1.1.1"], ["1.2.3"], ["01.2.3.4"], ["0.0.0.0"], ["a.b.c.d"])
def is_address(text: str) -> bool:
    """Say whether the text consists of four whole numbers from 0 to 255 with points between them. A number has no leading zeros (but 0 itself is allowed)."""
    parts = text.split(".")
    return len(parts) == 4 and all(p.isdigit() and int(p) <= 255 and str(int(p)) == p for p in parts)


@cases(["a1b22c"], ["none"], ["007 and 8"], [""], ["-5 and 5"], ["1.5"])
def numbers_in(text: str) -> list[int]:
    """Return all whole numbers that are written in the text as longest runs of digits, in their order. Signs and points are ignored."""
    import re

    return [int(digits) for digits in re.findall(r"\d+", text)]


@cases(["Hello World"], ["abc"], [""], ["ABC def"], ["a1B2"], ["MiXeD"])
def swap_case(text: str) -> str:
    """Replace small letters by capital ones and capital letters by small ones."""
    return text.swapcase()


@cases(["the lord of the rings"], ["a tale of two cities"], ["of"], ["war and peace"], ["gone with the wind"], ["the end"])
def title_case(text: str) -> str:
    """Give every word a capital first letter, but leave "a", "and", "of", "the" and "with" small unless they are the first word. The text has small letters and single spaces."""
    small = ("a", "and", "of", "the", "with")
    words = text.split(" ")
    return " ".join(w if i and w in small else w[:1].upper() + w[1:] for i, w in enumerate(words))


@cases(["abcde", 2], ["abcde", 0], ["abc", 7], ["", 3], ["hello", -1], ["xy", 2])
def rotated(text: str, n: int) -> str:
    """Move the first n characters of the text to its end. n may be larger than the text or negative; then it goes round."""
    if not text:
        return ""
    n %= len(text)
    return text[n:] + text[:n]


@cases(["waterbottle", "erbottlewat"], ["abc", "acb"], ["", ""], ["aa", "aaa"], ["abab", "baba"], ["x", "x"])
def is_rotation(a: str, b: str) -> bool:
    """Say whether the second text is the first one with some characters moved from its beginning to its end."""
    return len(a) == len(b) and b in a + a


@cases(["PAYPALISHIRING", 3], ["ABC", 1], ["ABCD", 2], ["", 3], ["HELLOWORLD", 4], ["AB", 5])
def zigzag(text: str, rows: int) -> str:
    """Write the text in a zigzag over the given number of rows: down to the last row, up to the first, down again. Return the rows joined from top to bottom."""
    if rows == 1:
        return text
    lines, row, step = [""] * rows, 0, 1
    for c in text:
        lines[row] += c
        step = 1 if row == 0 else -1 if row == rows - 1 else step
        row += step
    return "".join(lines)


@cases([["cat", "dog"], "catdogcat"], [["a"], "b"], [["ab", "abc"], "abcab"], [["x"], ""], [["leet", "code"], "leetcode"], [["go", "goal"], "goalgo"])
def can_be_split(words: list[str], text: str) -> bool:
    """Say whether the text can be cut into words of the list, each used as often as needed. The empty text can."""
    reachable = [True] + [False] * len(text)
    for end in range(1, len(text) + 1):
        reachable[end] = any(reachable[end - len(w)] for w in words if w and text[:end].endswith(w))
    return reachable[-1]
