"""Problems on mappings, tables and intervals."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases([{"a": 1, "b": 2}], [{}], [{"x": "y"}], [{"a": 1, "b": 1}], [{"one": "two", "two": "one"}], [{"k": 5, "j": 6, "i": 5}])
def inverted(table: dict) -> dict[str, list[str]]:
    """Return for every value, written as text, the sorted list of the keys that have it."""
    found = {}
    for key, value in table.items():
        found.setdefault(str(value), []).append(key)
    return {value: sorted(keys) for value, keys in found.items()}


@cases([{"a": 1}, {"a": 2, "b": 3}], [{}, {}], [{"x": 5}, {}], [{"a": -1, "b": 1}, {"a": 1}], [{"p": 1}, {"q": 2}], [{"m": 4, "n": 0}, {"n": 6, "m": 1}])
def added(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    """Return a table with all keys of both, in which each key has the sum of its values; a missing value counts as 0."""
    return {key: a.get(key, 0) + b.get(key, 0) for key in [*a, *(k for k in b if k not in a)]}


@cases([{"a": {"b": 1, "c": {"d": 2}}}], [{}], [{"x": 1}], [{"a": {}, "b": 2}], [{"a": {"b": {"c": {"d": 0}}}}], [{"p": 1, "q": {"r": 2, "s": 3}}])
def flat_keys(nested: dict) -> dict[str, int]:
    """Flatten a nested table: the key of a number is the keys on its way, joined by points. Empty tables disappear."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": n for inner, n in flat_keys(value).items()})
        else:
            flat[key] = value
    return flat


@cases([{"a.b": 1, "a.c.d": 2}], [{}], [{"x": 1}], [{"p.q.r": 5}], [{"a": 1, "b.c": 2}], [{"k.l": 0, "k.m": 1, "n": 2}])
def nested_keys(flat: dict[str, int]) -> dict:
    """Turn keys with points into nested tables: {"a.b": 1} becomes {"a": {"b": 1}}."""
    nested = {}
    for key, value in flat.items():
        *way, last = key.split(".")
        table = nested
        for part in way:
            table = table.setdefault(part, {})
        table[last] = value
    return nested


@cases([[["ann", 5], ["bob", 3], ["ann", 2]]], [[]], [[["x", 1]]], [[["a", -1], ["a", 1]]], [[["b", 2], ["a", 1], ["b", 4]]], [[["p", 0], ["q", 7]]])
def totals(rows: list[list]) -> dict[str, int]:
    """Rows are pairs of a name and a number. Return the sum of the numbers of each name."""
    sums = {}
    for name, n in rows:
        sums[name] = sums.get(name, 0) + n
    return sums


@cases([[["ann", 5], ["bob", 8], ["cid", 5]]], [[]], [[["x", 1]]], [[["b", 3], ["a", 3]]], [[["z", -1], ["y", 0], ["x", 9]]], [[["ann", 7], ["Bob", 7], ["cid", 9]]])
def ranking(rows: list[list]) -> list[str]:
    """Rows are pairs of a name and points. Return the names with the most points first, equal ones in the order of their names."""
    return [name for name, _ in sorted(rows, key=lambda row: (-row[1], row[0]))]


@cases([[["ann", 5], ["bob", 8], ["cid", 5], ["dan", 1]]], [[]], [[["x", 1]]], [[["a", 3], ["b", 3]]], [[["p", 9], ["q", 8], ["r", 7]]], [[["m", 2], ["n", 4], ["o", 4], ["p", 2]]])
def places(rows: list[list]) -> dict[str, int]:
    """Rows are pairs of a name and points. Return each name's place, 1 for the most points. Equal points share a place, and the places after it are skipped (1, 2, 2, 4)."""
    return {name: 1 + sum(other > points for _, other in rows) for name, points in rows}


@cases([[[1, 3], [2, 6], [8, 10]]], [[]], [[[5, 6]]], [[[1, 4], [4, 5]]], [[[6, 8], [1, 9], [2, 4]]], [[[1, 2], [3, 4]]])
def merged_intervals(intervals: list[list[int]]) -> list[list[int]]:
    """Merge closed intervals [first, last] that share at least one point, and return the result sorted."""
    found = []
    for first, last in sorted(intervals):
        if found and first <= found[-1][1]:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return found


@cases([[[1, 4], [2, 5], [7, 9]]], [[]], [[[0, 1]]], [[[1, 2], [2, 3]]], [[[1, 10], [2, 3], [4, 5], [2, 9]]], [[[5, 8], [5, 8], [5, 8]]])
def most_at_once(intervals: list[list[int]]) -> int:
    """Guests are present from `first` up to, but not including, `last`. Return the largest number present at one time."""
    return max((sum(a <= t < b for a, b in intervals) for t, _ in intervals), default=0)


@cases([[[1, 3], [2, 4], [3, 5]]], [[]], [[[0, 9]]], [[[1, 2], [2, 3], [3, 4]]], [[[1, 10], [2, 3], [4, 5]]], [[[6, 7], [1, 4], [3, 6], [5, 9]]])
def most_meetings(meetings: list[list[int]]) -> int:
    """Return how many of the meetings [start, end] one person can attend at most. A meeting may start when another ends."""
    count, free = 0, None
    for start, end in sorted(meetings, key=lambda m: m[1]):
        if free is None or start >= free:
            count, free = count + 1, end
    return count


@cases([[[9, 10], [12, 13]], 8, 17], [[], 1, 5], [[[1, 5]], 1, 5], [[[2, 3], [3, 4]], 0, 6], [[[0, 9]], 2, 4], [[[5, 7], [1, 2]], 0, 8])
def free_times(busy: list[list[int]], start: int, end: int) -> list[list[int]]:
    """Return the times between start and end in which nothing of the busy intervals lies, as sorted intervals of positive length. Busy intervals do not overlap but may lie in any order and beyond the limits."""
    free, at = [], start
    for a, b in sorted(busy):
        if a > at and at < end:
            free.append([at, min(a, end)])
        at = max(at, b)
    if at < end:
        free.append([at, end])
    return free


@cases([{"shirt": ["undershirt"], "shoes": ["socks"], "socks": [], "undershirt": []}], [{}], [{"a": []}], [{"c": ["b"], "b": ["a"], "a": []}], [{"b": [], "a": []}], [{"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}])
def order_of_work(needs: dict[str, list[str]]) -> list[str]:
    """Each task can be done when all tasks that it needs are done. Return an order of all tasks: of those that can be done next always the first in the alphabet. There are no circles."""
    done = []
    while len(done) < len(needs):
        done.append(min(t for t, before in needs.items() if t not in done and all(b in done for b in before)))
    return done


@cases([{"a": ["b"], "b": ["a"]}], [{"a": ["b"], "b": []}], [{}], [{"x": ["x"]}], [{"a": ["b"], "b": ["c"], "c": ["a"]}], [{"a": ["b", "c"], "b": ["c"], "c": []}])
def has_circle(needs: dict[str, list[str]]) -> bool:
    """Each task lists the tasks it needs; all of them are keys of the table. Say whether some task needs itself, directly or through others."""
    left = dict(needs)
    while True:
        ready = [t for t, before in left.items() if not any(b in left for b in before)]
        if not ready:
            return bool(left)
        for t in ready:
            del left[t]


@cases([{"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, "a", "d"], [{"a": []}, "a", "a"], [{"a": [], "b": []}, "a", "b"], [{"x": ["y"], "y": ["z"], "z": ["x"]}, "x", "z"], [{"p": ["q"], "q": ["p"]}, "q", "p"], [{"a": ["b"], "b": ["c"], "c": ["d"], "d": []}, "a", "d"])
def fewest_steps(roads: dict[str, list[str]], start: str, goal: str) -> int:
    """Each place lists the places that can be reached from it in one step. Return the smallest number of steps from start to goal, or -1 if it cannot be reached."""
    distance, queue = {start: 0}, [start]
    for place in queue:
        for to in roads[place]:
            if to not in distance:
                distance[to] = distance[place] + 1
                queue.append(to)
    return distance.get(goal, -1)


@cases([[["a", "b", 4], ["a", "c", 1], ["c", "b", 2]], "a", "b"], [[], "x", "x"], [[["a", "b", 3]], "b", "a"], [[["p", "q", 5], ["q", "r", 1]], "p", "r"], [[["a", "b", 1]], "a", "z"], [[["a", "b", 9], ["a", "c", 2], ["c", "d", 2], ["d", "b", 2]], "a", "b"])
def shortest_way(roads: list[list], start: str, goal: str) -> int:
    """Roads are [place, place, length] and can be used in both directions. Return the length of the shortest way from start to goal, or -1 if there is none."""
    best, todo = {}, [(0, start)]
    while todo:
        length, place = min(todo)
        todo.remove((length, place))
        if place in best:
            continue
        best[place] = length
        for a, b, n in roads:
            if a == place:
                todo.append((length + n, b))
            if b == place:
                todo.append((length + n, a))
    return best.get(goal, -1)


@cases([4, [[0, 1], [2, 3]]], [3, []], [1, []], [5, [[0, 1], [1, 2], [3, 4], [4, 3]]], [2, [[0, 1], [1, 0]]], [6, [[0, 5], [5, 4], [1, 2]]])
def groups_of_friends(people: int, friends: list[list[int]]) -> int:
    """People have numbers from 0. Friends of friends belong to one group. Return how many groups there are; a person without friends is a group."""
    group = list(range(people))
    for a, b in friends:
        old, new = group[a], group[b]
        group = [new if g == old else g for g in group]
    return len(set(group))


@cases([[["ann", None], ["bob", "ann"], ["cid", "bob"]], "cid"], [[["x", None]], "x"], [[["a", None], ["b", "a"]], "b"], [[["r", None], ["s", "r"], ["t", "s"], ["u", "t"]], "u"], [[["r", None], ["s", "r"], ["t", "r"]], "t"], [[["m", None], ["n", "m"], ["o", "n"]], "n"])
def chain_of_command(rows: list[list], name: str) -> list[str]:
    """Rows are pairs of a person and that person's superior (None at the top). Return the superiors of the named person, the direct one first."""
    above, chain = dict(rows), []
    while above[name] is not None:
        name = above[name]
        chain.append(name)
    return chain


@cases([[["a", None], ["b", "a"], ["c", "a"], ["d", "b"]]], [[["x", None]]], [[["p", None], ["q", "p"]]], [[["a", None], ["b", "a"], ["c", "b"], ["d", "c"]]], [[["t", None], ["u", "t"], ["v", "t"], ["w", "t"]]], [[["m", None], ["n", None]]])
def team_sizes(rows: list[list]) -> dict[str, int]:
    """Rows are pairs of a person and that person's superior (None at the top), superiors first. Return for each person how many people are below, directly or through others."""
    sizes = {name: 0 for name, _ in rows}
    for name, above in reversed(rows):
        if above is not None:
            sizes[above] += sizes[name] + 1
    return sizes


@cases([["name,age", "Ann,30", "Bob,25"]], [["x", "1"]], [["a,b"]], [["id,city", "1,Rome", "2,Oslo"]], [["k,v", ",1", "2,"]], [["p,q,r", "1,2,3"]])
def read_table(lines: list[str]) -> list[dict[str, str]]:
    """The first line names columns, separated by commas; every other line has one value for each. Return the rows as tables from column to value."""
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","))) for line in lines[1:]]


@cases(["a=1&b=2"], [""], ["x=5"], ["q=hello&lang=en"], ["a=&b=3"], ["k=v=w&z=0"])
def read_query(text: str) -> dict[str, str]:
    """The text consists of name=value pairs with & between them. Return a table of them. Only the first = of a pair separates; the empty text has no pairs."""
    return dict(pair.split("=", 1) for pair in text.split("&") if pair)


@cases([["INFO start", "ERROR disk", "INFO end", "ERROR net"]], [[]], [["WARN a"]], [["ERROR x", "ERROR y", "ERROR z"]], [["INFO a b", "DEBUG c"]], [["A 1", "B 2", "A 3", "C 4", "B 5"]])
def count_levels(lines: list[str]) -> dict[str, int]:
    """Each line begins with a level and a space. Return how many lines each level has."""
    counts = {}
    for line in lines:
        level = line.split(" ", 1)[0]
        counts[level] = counts.get(level, 0) + 1
    return counts


@cases([[["apple", 3, 2], ["pear", 1, 5]]], [[]], [[["x", 0, 9]]], [[["a", 2, 50], ["b", 1, 1]]], [[["pen", 10, 10]]], [[["book", 3, 40], ["pen", 2, 5], ["bag", 1, 0]]])
def bill(items: list[list]) -> int:
    """Items are [name, number, price]. Return the sum to pay: from 100 on a tenth of it is taken off, rounded down."""
    total = sum(n * price for _, n, price in items)
    return total - total // 10 if total >= 100 else total


@cases([{"apple": 3}, [["apple", -2], ["pear", 4]]], [{}, []], [{"x": 1}, [["x", -1]]], [{"a": 5}, [["a", -9], ["a", 2]]], [{"p": 2, "q": 1}, [["p", 1], ["q", -1], ["r", -1]]], [{}, [["m", 3], ["m", -3], ["m", 1]]])
def stock_after(stock: dict[str, int], changes: list[list]) -> dict[str, int]:
    """Apply changes [name, number] to the stock in their order. A change that would leave less than 0 is skipped. Names with 0 are removed at the end."""
    now = dict(stock)
    for name, n in changes:
        if now.get(name, 0) + n >= 0:
            now[name] = now.get(name, 0) + n
    return {name: n for name, n in now.items() if n}


@cases([[["x", 1], ["y", 2]], [["x", "red"], ["z", "blue"]]], [[], []], [[["a", 1]], [["a", "b"]]], [[["p", 3], ["p", 4]], [["p", "q"]]], [[["m", 0]], []], [[["k", 1], ["l", 2]], [["l", "u"], ["k", "v"]]])
def joined_rows(left: list[list], right: list[list]) -> list[list]:
    """Join rows [key, number] of the left table with the row [key, word] of the right one that has the same key, as [key, number, word], in the left order. Keys of the right table are different; left rows without a partner are dropped."""
    words = dict(right)
    return [[key, n, words[key]] for key, n in left if key in words]


@cases([[1, 2, 2, 3, 3]], [[5]], [[1, 1, 2, 2]], [[4, 4, 4]], [[-1, -1, 0]], [[9, 8, 7]])
def modes(numbers: list[int]) -> list[int]:
    """Return the values that occur most often in the list, which is not empty, in ascending order."""
    most = max(numbers.count(n) for n in numbers)
    return sorted({n for n in numbers if numbers.count(n) == most})


@cases([{"ann": ["tea", "cake"], "bob": ["tea"]}], [{}], [{"x": []}], [{"a": ["p", "q"], "b": ["q", "r"], "c": ["q"]}], [{"m": ["z"], "n": ["y"]}], [{"k": ["a", "a"], "l": ["a"]}])
def liked_by_all(likes: dict[str, list[str]]) -> list[str]:
    """Return in alphabetical order what everyone in the table likes. Without people the list is empty."""
    if not likes:
        return []
    return sorted(set.intersection(*(set(things) for things in likes.values())))


@cases([{"a": 3, "b": 1, "c": 2}, 2], [{}, 1], [{"x": 5}, 3], [{"p": 1, "q": 1, "r": 1}, 2], [{"m": 9, "n": 10}, 1], [{"k": 4, "j": 4, "l": 7}, 2])
def top(counts: dict[str, int], n: int) -> list[str]:
    """Return the n names with the largest numbers, largest first; equal ones in alphabetical order. If there are fewer, return all."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:n]


@cases([{"a": 1, "b": 2}, {"a": 1, "c": 3}], [{}, {}], [{"x": 1}, {"x": 2}], [{}, {"n": 1}], [{"p": 1, "q": 2}, {}], [{"k": 0, "l": 5, "m": 6}, {"m": 6, "l": 4, "n": 1}])
def differences(old: dict[str, int], new: dict[str, int]) -> list[str]:
    """Return what changed, sorted by key: "+key" for a new key, "-key" for one that is gone, "~key" for one with another value. Sort by the key without its sign."""
    found = []
    for key in sorted({*old, *new}):
        if key not in old:
            found.append("+" + key)
        elif key not in new:
            found.append("-" + key)
        elif old[key] != new[key]:
            found.append("~" + key)
    return found


@cases([[["mon", 9, 17], ["tue", 9, 12]]], [[]], [[["x", 22, 6]]], [[["a", 8, 8]]], [[["m", 6, 14], ["n", 20, 4]]], [[["p", 0, 23]]])
def hours_worked(shifts: list[list]) -> int:
    """Shifts are [day, start hour, end hour]. A shift whose end is smaller than its start ends on the next day. Return the sum of all hours."""
    return sum((end - start) % 24 for _, start, end in shifts)


@cases(["2026-01-31", 1], ["2024-02-28", 1], ["2026-12-31", 1], ["2026-03-01", -1], ["2026-11-29", 0], ["2023-02-27", 3])
def date_after(date: str, days: int) -> str:
    """Return the date (year-month-day) that lies the given number of days after the given one; the number may be negative."""
    from datetime import date as Date
    from datetime import timedelta

    return str(Date.fromisoformat(date) + timedelta(days=days))


@cases(["2026-11-29"], ["2000-01-01"], ["2024-02-29"], ["1999-12-31"], ["2026-01-05"], ["1970-01-01"])
def weekday(date: str) -> str:
    """Return the English name of the weekday of the date (year-month-day), such as "Monday"."""
    from datetime import date as Date

    return ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"][Date.fromisoformat(date).weekday()]


@cases(["1.2.10", "1.2.9"], ["1.0", "1.0.0"], ["2", "10"], ["1.2", "1.2.1"], ["3.0.1", "3.0.1"], ["0.9.9", "1"])
def newer_version(a: str, b: str) -> int:
    """Compare two versions, numbers with points between them; missing numbers count as 0. Return 1 if the first is newer, -1 if the second is, else 0."""
    x, y = [int(n) for n in a.split(".")], [int(n) for n in b.split(".")]
    size = max(len(x), len(y))
    x, y = x + [0] * (size - len(x)), y + [0] * (size - len(y))
    return (x > y) - (x < y)


@cases([[["a", "b"], ["b", "c"]], "a", "c"], [[], "x", "x"], [[["p", "q"]], "q", "p"], [[["a", "b"], ["c", "d"]], "a", "d"], [[["a", "a"]], "a", "a"], [[["k", "l"], ["l", "m"], ["m", "n"]], "k", "n"])
def leads_to(links: list[list[str]], start: str, goal: str) -> bool:
    """Links [from, to] can be followed in one direction. Say whether the goal can be reached from the start; a page reaches itself."""
    reached = [start]
    for page in reached:
        reached += [to for a, to in links if a == page and to not in reached]
    return goal in reached


@cases([["red", "blue"], {"red": 2, "blue": 1, "green": 5}], [[], {}], [["a", "a"], {"a": 1}], [["x"], {}], [["p", "q", "p"], {"p": 2, "q": 1}], [["m"], {"m": 0}])
def can_be_built(parts: list[str], stock: dict[str, int]) -> bool:
    """Say whether the stock has enough of every part in the list; a part that is listed twice is needed twice."""
    return all(stock.get(part, 0) >= parts.count(part) for part in parts)
