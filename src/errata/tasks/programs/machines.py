"""Problems on small machines: expressions, instructions, games and simulations."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases(["3 4 + 2 *"], ["5"], ["2 3 -"], ["4 2 / 3 -"], ["7 2 /"], ["1 2 + 3 4 + *"])
def postfix(text: str) -> int:
    """Compute an expression in which an operator (+ - * /) follows its two operands, all separated by spaces. Division of these positive numbers drops the rest."""
    stack = []
    for word in text.split():
        if word in "+-*/":
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if word == "+" else a - b if word == "-" else a * b if word == "*" else a // b)
        else:
            stack.append(int(word))
    return stack[0]


@cases(["2+3*4"], ["7"], ["10-2-3"], ["2*3*4+1"], ["1+2*3-4*2"], ["100-99+1"])
def calculate(text: str) -> int:
    """Compute an expression of non-negative whole numbers with + - and *. Products come before sums and differences, otherwise it goes from left to right."""
    import re

    total, sign = 0, 1
    for part in re.findall(r"[+-]|[^+-]+", text):
        if part in "+-":
            sign = 1 if part == "+" else -1
        else:
            product = 1
            for n in part.split("*"):
                product *= int(n)
            total += sign * product
    return total


@cases(["2*(3+4)"], ["(1)"], ["((2+3))*2-1"], ["5-(2-(3-1))"], ["(1+2)*(3+4)"], ["8"])
def calculate_brackets(text: str) -> int:
    """Compute an expression of non-negative whole numbers with + - * and round brackets. Products come before sums and differences."""

    def expression(at: int) -> tuple[int, int]:
        value, at = term(at)
        while at < len(text) and text[at] in "+-":
            other, after = term(at + 1)
            value, at = (value + other if text[at] == "+" else value - other), after
        return value, at

    def term(at: int) -> tuple[int, int]:
        value, at = atom(at)
        while at < len(text) and text[at] == "*":
            other, at = atom(at + 1)
            value *= other
        return value, at

    def atom(at: int) -> tuple[int, int]:
        if text[at] == "(":
            value, at = expression(at + 1)
            return value, at + 1
        end = at
        while end < len(text) and text[end].isdigit():
            end += 1
        return int(text[at:end]), end

    return expression(0)[0]


@cases(["RRUUL"], [""], ["UDLR"], ["UUUU"], ["LLDDRRR"], ["RDLU"])
def walk(moves: str) -> list[int]:
    """Start at [0, 0]. R and L change the first number by 1 and -1, U and D the second one. Return where the moves lead."""
    return [moves.count("R") - moves.count("L"), moves.count("U") - moves.count("D")]


@cases(["FFRFF"], [""], ["LF"], ["RRFF"], ["FRFRFRF"], ["FLFLLFF"])
def turtle(moves: str) -> list[int]:
    """Start at [0, 0] and look up (second number grows). F goes one step ahead, R and L turn by 90 degrees. Return where the moves lead."""
    x, y, dx, dy = 0, 0, 0, 1
    for move in moves:
        if move == "F":
            x, y = x + dx, y + dy
        elif move == "R":
            dx, dy = dy, -dx
        else:
            dx, dy = -dy, dx
    return [x, y]


@cases(["UURRDDLL"], ["U"], [""], ["LRLR"], ["UUU"], ["URDLURDL"])
def squares_visited(moves: str) -> int:
    """Go one square up, down, left or right for each letter out of U, D, L and R. Return how many different squares were visited, the first one included."""
    x, y, seen = 0, 0, {(0, 0)}
    for move in moves:
        x += (move == "R") - (move == "L")
        y += (move == "U") - (move == "D")
        seen.add((x, y))
    return len(seen)


@cases([["add 5", "mul 3", "sub 4"]], [[]], [["add 1", "add 1"]], [["mul 7"]], [["sub 3", "mul 2"]], [["add 2", "mul 5", "mul 0"]])
def register(lines: list[str]) -> int:
    """A register starts with 0. Carry out the lines "add n", "sub n" and "mul n" and return its value."""
    value = 0
    for line in lines:
        word, n = line.split()
        value = value + int(n) if word == "add" else value - int(n) if word == "sub" else value * int(n)
    return value


@cases([["set a 5", "copy a b", "add b 2"]], [[]], [["set x 1"]], [["set a 3", "set a 4"]], [["set p 2", "copy p q", "add p 1", "copy p r"]], [["set m 10", "add m -15"]])
def registers(lines: list[str]) -> dict[str, int]:
    """Carry out "set x n" (x becomes n), "add x n" (x grows by n) and "copy x y" (y becomes x). Return all registers that were set."""
    values = {}
    for line in lines:
        word, name, other = line.split()
        if word == "set":
            values[name] = int(other)
        elif word == "add":
            values[name] += int(other)
        else:
            values[other] = values[name]
    return values


@cases([["inc", "jump 2", "inc", "inc"]], [[]], [["inc"]], [["inc", "inc", "jump 5"]], [["jump 2", "inc"]], [["inc", "jump 1", "inc"]])
def run_until_end(lines: list[str]) -> int:
    """A counter starts with 0. "inc" adds 1 and goes on to the next line; "jump n" (n at least 1) goes on n lines further down. Return the counter when there is no line left."""
    counter, at = 0, 0
    while at < len(lines):
        if lines[at] == "inc":
            counter, at = counter + 1, at + 1
        else:
            at += int(lines[at].split()[1])
    return counter


@cases([[1, 2, -1]], [[0]], [[2, 0, -2]], [[1, 1, 1]], [[3, -1, 5, 1]], [[1, -1]])
def steps_until_out(jumps: list[int]) -> int:
    """Start at position 0 and jump each time by the number at your position. Return after how many jumps you leave the list, or -1 if you never do."""
    at, seen = 0, set()
    while 0 <= at < len(jumps):
        if at in seen:
            return -1
        seen.add(at)
        at += jumps[at]
    return len(seen)


@cases([["push 3", "push 4", "add"]], [["push 5"]], [["push 2", "dup", "mul"]], [["push 1", "push 2", "swap", "sub"]], [["push 7", "push 8", "drop"]], [["push 2", "push 3", "add", "dup", "add"]])
def stack_machine(lines: list[str]) -> list[int]:
    """Carry out on a stack: "push n"; "add", "sub" and "mul" replace the two upper numbers a, b (b on top) by a+b, a-b or a*b; "dup" doubles the top one, "swap" exchanges the two upper ones, "drop" removes the top one. Return the stack, the top last."""
    stack = []
    for line in lines:
        word, *rest = line.split()
        if word == "push":
            stack.append(int(rest[0]))
        elif word == "dup":
            stack.append(stack[-1])
        elif word == "swap":
            stack[-1], stack[-2] = stack[-2], stack[-1]
        elif word == "drop":
            stack.pop()
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if word == "add" else a - b if word == "sub" else a * b)
    return stack


@cases(["++>+++<-"], [""], ["+"], [">>+++"], ["-"], ["+>++>+++<<-"])
def tape(program: str) -> list[int]:
    """A tape of zeros goes on to the right. "+" and "-" change the number at the head, ">" and "<" move the head, which starts at the left end and never leaves it. Return the tape up to the last square that the head visited furthest to the right."""
    cells, at = [0], 0
    for c in program:
        if c == ">":
            at += 1
            cells += [0] * (at == len(cells))
        elif c == "<":
            at -= 1
        else:
            cells[at] += 1 if c == "+" else -1
    return cells


@cases([["put a 1", "put b 2", "get a"], 2], [[], 1], [["put x 1", "put y 2", "get x", "get y"], 1], [["put a 1", "put b 2", "get a", "put c 3", "get b"], 2], [["get z"], 3], [["put k 1", "put k 2", "get k"], 2])
def cache(lines: list[str], size: int) -> list[int]:
    """A store keeps at most `size` names. "put name n" writes, "get name" reads. When a new name does not fit, the one that was read or written least recently is dropped. Return the values that were read, -1 for names that are not there."""
    kept, read = {}, []
    for line in lines:
        word, name, *rest = line.split()
        if word == "put":
            kept.pop(name, None)
            if len(kept) == size:
                del kept[next(iter(kept))]
            kept[name] = int(rest[0])
        elif name in kept:
            kept[name] = kept.pop(name)
            read.append(kept[name])
        else:
            read.append(-1)
    return read


@cases([["type a", "type b", "undo"]], [[]], [["type x", "undo", "redo"]], [["undo", "type q"]], [["type a", "undo", "type b", "redo"]], [["type h", "type i", "undo", "undo", "redo"]])
def editor(lines: list[str]) -> str:
    """Carry out "type c" (append a character), "undo" (take back the last one that stands) and "redo" (bring back what was last undone, unless something was typed since). What is not possible does nothing. Return the text."""
    text, undone = [], []
    for line in lines:
        if line == "undo":
            if text:
                undone.append(text.pop())
        elif line == "redo":
            if undone:
                text.append(undone.pop())
        else:
            text.append(line[5:])
            undone = []
    return "".join(text)


@cases(["ab#c"], [""], ["###x"], ["abc##d"], ["a#b#c#"], ["xy#z"])
def typed(text: str) -> str:
    """Every "#" is a backspace that removes the character before it, if there is one. Return what remains."""
    kept = []
    for c in text:
        if c == "#":
            del kept[-1:]
        else:
            kept.append(c)
    return "".join(kept)


@cases(["/a/b/../c"], ["/"], ["/../x"], ["/a/./b//c/"], ["/p/q/../../.."], ["/home/user/../docs"])
def clean_path(path: str) -> str:
    """Simplify an absolute path: "." and empty parts do nothing, ".." goes one folder up (at the top it does nothing). The result begins with "/" and does not end with one unless it is "/" itself."""
    parts = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


@cases(["aab", "a*b"], ["abc", "a.c"], ["", "a*"], ["mississippi", "mis*is*p*."], ["ab", ".*"], ["aa", "a"])
def matches(text: str, pattern: str) -> bool:
    """Say whether the pattern describes the whole text: "." is any character, "*" after a character means any number of it (also none). Other characters stand for themselves."""
    import re

    return re.fullmatch(pattern, text) is not None


@cases(["report.txt", "*.txt"], ["a", "?"], ["", "*"], ["abc", "a?c"], ["data1.csv", "data?.csv"], ["notes", "n*t?"])
def fits(name: str, pattern: str) -> bool:
    """Say whether the pattern describes the whole name: "?" is any one character, "*" any number of characters (also none). Other characters stand for themselves."""
    ok = [True] + [False] * len(name)
    for p in pattern:
        new = [ok[0] and p == "*"]
        for i, c in enumerate(name):
            new.append(new[i] or ok[i + 1] if p == "*" else ok[i] and p in ("?", c))
        ok = new
    return ok[-1]


@cases([["rock", "paper"]], [["rock", "rock"]], [["scissors", "paper"]], [["paper", "scissors"]], [["scissors", "rock"]], [["rock", "scissors"]])
def winner(choices: list[str]) -> int:
    """Two players chose "rock", "paper" or "scissors". Rock beats scissors, scissors beat paper, paper beats rock. Return 1 or 2 for the winner, 0 for a draw."""
    beats = {"rock": "scissors", "scissors": "paper", "paper": "rock"}
    a, b = choices
    return 0 if a == b else 1 if beats[a] == b else 2


@cases([[10, 3, 7]], [[]], [[0, 0, 0]], [[10, 10, 10, 1, 2]], [[5, 5, 5, 4]], [[9, 1, 10, 2, 3]])
def bowling(rolls: list[int]) -> int:
    """A simple game: two rolls are a frame, but a 10 in the first one is a frame by itself. A frame with 10 in all adds the next roll once more, if there is one. Return the sum."""
    total, i = 0, 0
    while i < len(rolls):
        frame = rolls[i : i + 1] if rolls[i] == 10 else rolls[i : i + 2]
        i += len(frame)
        total += sum(frame)
        if sum(frame) == 10 and i < len(rolls):
            total += rolls[i]
    return total


@cases([[5, 10, -5]], [[8, -8]], [[]], [[-2, -1, 1, 2]], [[10, 2, -5]], [[3, -4, 2]])
def collisions(stones: list[int]) -> list[int]:
    """Stones in a row move to the right (positive) or to the left (negative), all equally fast. When two meet, the smaller one (by absolute value) vanishes; of equal ones both. Return what remains."""
    left = []
    for stone in stones:
        while left and left[-1] > 0 > stone:
            if left[-1] < -stone:
                left.pop()
                continue
            if left[-1] == -stone:
                left.pop()
            break
        else:
            left.append(stone)
    return left


@cases([["A", "A", "B", "B"], 1], [["A"], 3], [[], 2], [["A", "A", "A"], 2], [["A", "B", "C"], 0], [["A", "A", "A", "B", "B", "C"], 2])
def cooling(tasks: list[str], pause: int) -> int:
    """Each task takes one unit of time, in any order, and between two tasks of the same name at least `pause` units must pass, in which others can be done. Return the smallest total time."""
    if not tasks:
        return 0
    counts = [tasks.count(t) for t in set(tasks)]
    most = max(counts)
    return max(len(tasks), (most - 1) * (pause + 1) + counts.count(most))


@cases([[3, 1, 2], 2], [[5], 1], [[], 3], [[2, 2, 2, 2], 2], [[10, 1, 1, 1], 2], [[4, 3, 2, 1], 3])
def tills(customers: list[int], n: int) -> int:
    """Customers queue in one line for n tills and need the given times; whoever is first goes to the till that is free first. Return when the last one is served."""
    free = [0] * n
    for time in customers:
        i = free.index(min(free))
        free[i] += time
    return max(free)


@cases([["a", "b", "c"], ["next", "next", "back"]], [["x"], []], [["p", "q"], ["next"]], [["p", "q"], ["back"]], [["a", "b", "c"], ["next", "remove", "next"]], [["m", "n"], ["remove", "remove"]])
def playlist(songs: list[str], commands: list[str]) -> str:
    """A list plays in a circle and starts at its first song. "next" and "back" move by one; "remove" takes out the current song and goes to the one after it. Return the current song, or "" when none is left."""
    left, at = list(songs), 0
    for command in commands:
        if not left:
            break
        if command == "remove":
            del left[at]
        else:
            at += 1 if command == "next" else -1
        at = at % len(left) if left else 0
    return left[at] if left else ""


@cases([3], [1], [2], [4], [5], [0])
def tower_moves(n: int) -> list[str]:
    """Move a tower of n discs from A to C over B, one disc at a time, never a larger one onto a smaller one, in as few moves as possible. Return the moves, such as "A>C"."""

    def move(k: int, start: str, over: str, end: str) -> list[str]:
        if k == 0:
            return []
        return [*move(k - 1, start, end, over), f"{start}>{end}", *move(k - 1, over, start, end)]

    return move(n, "A", "B", "C")


@cases([2], [1], [3], [0], [4], [5])
def bracket_texts(n: int) -> list[str]:
    """Return all texts of n pairs of round brackets that match, in alphabetical order."""

    def grow(text: str, opened: int, closed: int) -> list[str]:
        if closed == n:
            return [text]
        found = grow(text + "(", opened + 1, closed) if opened < n else []
        return found + (grow(text + ")", opened, closed + 1) if closed < opened else [])

    return grow("", 0, 0)


@cases(["23"], [""], ["7"], ["234"], ["99"], ["27"])
def keypad(digits: str) -> list[str]:
    """On a telephone 2 stands for abc, 3 for def, 4 ghi, 5 jkl, 6 mno, 7 pqrs, 8 tuv and 9 for wxyz. Return all words that the digits can stand for, in alphabetical order; of no digits the list is empty."""
    from itertools import product

    letters = {"2": "abc", "3": "def", "4": "ghi", "5": "jkl", "6": "mno", "7": "pqrs", "8": "tuv", "9": "wxyz"}
    return ["".join(word) for word in product(*(letters[d] for d in digits))] if digits else []


@cases([4, [1, 3, 4], [15, 20, 30]], [0, [1], [9]], [5, [5], [7]], [3, [4], [10]], [10, [5, 4, 6], [10, 40, 30]], [7, [1, 3, 4, 5], [1, 4, 5, 7]])
def knapsack(limit: int, weights: list[int], values: list[int]) -> int:
    """Choose things whose weights sum up to at most the limit, each at most once. Return the largest sum of their values."""
    best = [0] * (limit + 1)
    for w, v in zip(weights, values):
        for total in range(limit, w - 1, -1):
            best[total] = max(best[total], best[total - w] + v)
    return best[limit]


@cases([["1 > 2", "2 > 3"], 1, 4], [["a > b"], "a", 0], [["x > y", "y > x"], "x", 5], [["p > p"], "p", 9], [["s > t", "t > u", "u > t"], "s", 6], [["k > l"], "k", 3])
def state_after(rules: list[str], start: str | int, steps: int) -> str:
    """Rules such as "a > b" say which state follows which. Return the state, as text, after the given number of steps; a state without a rule stays."""
    follows = dict(rule.split(" > ") for rule in rules)
    state = str(start)
    for _ in range(steps):
        state = follows.get(state, state)
    return state


@cases(["axiom", {"a": "ab"}, 2], ["A", {"A": "AB", "B": "A"}, 4], ["x", {}, 3], ["F", {"F": "F+F"}, 2], ["", {"a": "b"}, 5], ["ab", {"a": "b", "b": "a"}, 3])
def rewritten(text: str, rules: dict[str, str], times: int) -> str:
    """In every round replace each character by the text that the rules give for it, all at once; characters without a rule stay. Return the text after the given number of rounds."""
    for _ in range(times):
        text = "".join(rules.get(c, c) for c in text)
    return text


@cases(["00100", 90, 1], ["010", 30, 1], ["1", 255, 2], ["0001000", 90, 3], ["01101", 0, 1], ["0010", 110, 2])
def automaton(cells: str, rule: int, steps: int) -> str:
    """In every step a cell becomes bit number 4*l + 2*c + r of the rule, where l, c and r are its left neighbour, itself and its right neighbour (0 outside). Return the cells after the steps."""
    for _ in range(steps):
        wide = f"0{cells}0"
        cells = "".join(str(rule >> int(wide[i : i + 3], 2) & 1) for i in range(len(cells)))
    return cells


@cases([1, 5], [0, 1], [21, 4], [3, 1], [111, 3], [1, 8])
def look_and_say(start: int, n: int) -> list[str]:
    """Begin with the digits of the start. The next text reads the last one aloud: for every run of equal digits its length and the digit, so 21 is followed by 1211. Return the first n texts."""
    from itertools import groupby

    texts = [str(start)]
    while len(texts) < n:
        texts.append("".join(f"{len(list(run))}{digit}" for digit, run in groupby(texts[-1])))
    return texts


@cases([7, 5, 9, 3, 6], [0, 0, 0, 0, 1], [1, 1, 1, 1, 5], [5, 3, 0, 16, 4], [2, 7, 1, 10, 3], [9, 9, 9, 9, 2])
def pseudo_random(seed: int, factor: int, summand: int, modulus: int, n: int) -> list[int]:
    """Begin with the seed. Each next number is (factor * last + summand) modulo the modulus; with modulus 0 nothing is divided. Return the first n numbers, the seed included."""
    found = [seed]
    while len(found) < n:
        value = factor * found[-1] + summand
        found.append(value % modulus if modulus else value)
    return found[:n]
