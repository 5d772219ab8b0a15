"""Problems on lists of numbers."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases([[3, 1, 4, 1, 5]], [[2]], [[7, 7]], [[-1, -5, -3]], [[10, 9, 8, 7]], [[0, 100, -100, 100]])
def second_largest(numbers: list[int]) -> int | None:
    """Return the second largest of the different values in the list, or None if there are fewer than two."""
    values = sorted(set(numbers))
    return values[-2] if len(values) > 1 else None


@cases([[1, 2, 3, 4]], [[5]], [[]], [[0, -1, 1]], [[10, 10, 10]], [[-3, -4]])
def running_sums(numbers: list[int]) -> list[int]:
    """Return the list whose element number i is the sum of the elements up to and including number i."""
    from itertools import accumulate

    return list(accumulate(numbers))


@cases([[1, 2, 3, 4]], [[5, 5]], [[]], [[2, 0, 3]], [[0, 0, 7]], [[-1, 2, -3]])
def products_of_others(numbers: list[int]) -> list[int]:
    """Return for each element the product of all others. The product of no numbers is 1."""
    from math import prod

    return [prod(numbers[:i] + numbers[i + 1 :]) for i in range(len(numbers))]


@cases([[2, 7, 11, 15], 9], [[3, 3], 6], [[1, 2], 10], [[], 0], [[5, -2, 4, 7], 2], [[1, 4, 2, 3], 5])
def pair_with_sum(numbers: list[int], total: int) -> list[int]:
    """Return the positions [i, j], i < j, of two elements with the given sum: of all such pairs the one with the smallest j, and of those the smallest i. Return an empty list if there is none."""
    for j in range(len(numbers)):
        for i in range(j):
            if numbers[i] + numbers[j] == total:
                return [i, j]
    return []


@cases([[-1, 0, 1, 2, -1, -4]], [[0, 0, 0]], [[1, 2]], [[3, -2, -1, 0]], [[]], [[-2, 1, 1, -2, 1]])
def zero_triples(numbers: list[int]) -> list[list[int]]:
    """Return all different triples of elements (at three different positions) whose sum is 0. Each triple is sorted, and the triples are sorted."""
    from itertools import combinations

    return [list(t) for t in sorted({tuple(sorted(t)) for t in combinations(numbers, 3) if sum(t) == 0})]


@cases([[-2, 1, -3, 4, -1, 2, 1, -5, 4]], [[5]], [[-3, -1, -2]], [[1, 2, 3]], [[8, -19, 5, -4, 20]], [[0, -1, 0]])
def best_stretch(numbers: list[int]) -> int:
    """Return the largest sum of one or more neighbouring elements. The list is not empty."""
    best = current = numbers[0]
    for n in numbers[1:]:
        current = max(n, current + n)
        best = max(best, current)
    return best


@cases([[1, 3, 2, 5, 4, 6]], [[5, 4, 3]], [[]], [[1, 1, 1]], [[10, 9, 2, 5, 3, 7, 101, 18]], [[2, 4, 6]])
def longest_rising(numbers: list[int]) -> int:
    """Return the length of the longest strictly rising sequence that is left when some elements are removed."""
    from bisect import bisect_left

    ends = []
    for n in numbers:
        i = bisect_left(ends, n)
        ends[i : i + 1] = [n]
    return len(ends)


@cases([[100, 4, 200, 1, 3, 2]], [[5]], [[]], [[1, 2, 2, 3]], [[-1, 0, 1, 5, 6]], [[9, 7, 5]])
def longest_chain(numbers: list[int]) -> int:
    """Return the largest n for which n consecutive integers (such as 4, 5, 6) all occur in the list, in any order."""
    values, best = set(numbers), 0
    for v in values:
        if v - 1 not in values:
            n = 1
            while v + n in values:
                n += 1
            best = max(best, n)
    return best


@cases([[1, 2, 3, 4, 5], 2], [[1, 2], 5], [[], 3], [[7, 8, 9], 3], [[1, 2, 3], -1], [[4, 5, 6, 7], 6])
def turned_right(numbers: list[int], k: int) -> list[int]:
    """Move every element k places to the right; what leaves at the end returns at the beginning. k may be negative or larger than the list."""
    if not numbers:
        return []
    k %= len(numbers)
    return numbers[len(numbers) - k :] + numbers[: len(numbers) - k]


@cases([[1, 3, 5], [2, 4]], [[], [1]], [[], []], [[1, 1], [1]], [[5, 9], [1, 2, 3]], [[-3, 0], [-2, 8, 9]])
def merged(a: list[int], b: list[int]) -> list[int]:
    """Merge two sorted lists into one sorted list with all elements of both."""
    return sorted(a + b)


@cases([[1, 1, 2, 3, 3, 3]], [[5]], [[]], [[2, 1, 2]], [[0, 0, 0]], [[4, 3, 4, 3]])
def without_repeats(numbers: list[int]) -> list[int]:
    """Return the elements in their order, each value only where it occurs first."""
    return list(dict.fromkeys(numbers))


@cases([[3, 2, 3]], [[1, 2, 3]], [[2, 2, 1, 1, 2]], [[]], [[9]], [[1, 2, 1, 2]])
def majority(numbers: list[int]) -> int | None:
    """Return the value that makes up more than half of the list, or None if there is none."""
    return next((n for n in set(numbers) if numbers.count(n) * 2 > len(numbers)), None)


@cases([[4, 1, 2, 1, 2]], [[7]], [[3, 3, -5]], [[0, 9, 0]], [[8, 6, 8, 6, 1]], [[-1, -1, -2]])
def the_single_one(numbers: list[int]) -> int:
    """Every value occurs exactly twice in the list but one, which occurs once. Return that one."""
    return next(n for n in numbers if numbers.count(n) == 1)


@cases([[3, 0, 1]], [[0]], [[1]], [[0, 1, 2, 4]], [[9, 6, 4, 2, 3, 5, 7, 0, 1]], [[2, 0]])
def missing_number(numbers: list[int]) -> int:
    """The list holds n different integers out of 0 to n. Return the one that is missing."""
    return len(numbers) * (len(numbers) + 1) // 2 - sum(numbers)


@cases([[3, 4, -1, 1]], [[1, 2, 0]], [[]], [[7, 8, 9]], [[1, 1, 2]], [[2, 3, 1, 5]])
def first_missing(numbers: list[int]) -> int:
    """Return the smallest positive integer that does not occur in the list."""
    n = 1
    while n in numbers:
        n += 1
    return n


@cases([[7, 1, 5, 3, 6, 4]], [[5, 4, 3]], [[]], [[1, 2]], [[2, 9, 1, 7]], [[3, 3]])
def best_trade(prices: list[int]) -> int:
    """Buy once and sell once on a later day at the given prices. Return the largest gain, 0 if none is possible."""
    best, lowest = 0, None
    for p in prices:
        lowest = p if lowest is None else min(lowest, p)
        best = max(best, p - lowest)
    return best


@cases([[7, 1, 5, 3, 6, 4]], [[5, 4, 3]], [[]], [[1, 2, 3]], [[2, 9, 1, 7]], [[1, 3, 3, 5]])
def all_trades(prices: list[int]) -> int:
    """Buy and sell any number of times, holding at most one piece at a time, at the given daily prices. Return the largest total gain."""
    return sum(max(b - a, 0) for a, b in zip(prices, prices[1:]))


@cases([[0, 1, 0, 3, 12]], [[0]], [[]], [[1, 2]], [[0, 0, 5]], [[4, 0, 5, 0, 0, 6]])
def zeros_last(numbers: list[int]) -> list[int]:
    """Move all zeros to the end and keep the order of the other elements."""
    kept = [n for n in numbers if n]
    return kept + [0] * (len(numbers) - len(kept))


@cases([[1, 8, 6, 2, 5, 4, 8, 3, 7]], [[1, 1]], [[4, 3]], [[1, 2, 1]], [[5, 5, 5, 5]], [[2, 3, 10, 5, 7]])
def most_water(heights: list[int]) -> int:
    """Two of the vertical lines with the given heights, one apart from each neighbour, form a vessel as high as the lower one. Return the largest area between two lines."""
    n = len(heights)
    return max(min(heights[i], heights[j]) * (j - i) for i in range(n) for j in range(i + 1, n))


@cases([[0, 1, 0, 2, 1, 0, 1, 3, 2, 1, 2, 1]], [[3, 0, 2]], [[]], [[1, 2, 3]], [[4, 2, 0, 3, 2, 5]], [[5, 1, 5]])
def rain(heights: list[int]) -> int:
    """The list gives the heights of walls of width 1 side by side. Return how many units of rain stay between them."""
    return sum(min(max(heights[: i + 1]), max(heights[i:])) - h for i, h in enumerate(heights))


@cases([[2, 1, 5, 6, 2, 3]], [[4]], [[]], [[2, 4]], [[1, 1, 1, 1]], [[6, 2, 5, 4, 5, 1, 6]])
def largest_rectangle(heights: list[int]) -> int:
    """Bars of width 1 with the given heights stand side by side. Return the area of the largest rectangle inside them, 0 without bars."""
    n = len(heights)
    return max((min(heights[i : j + 1]) * (j - i + 1) for i in range(n) for j in range(i, n)), default=0)


@cases([[2, 3, 1, 1, 4]], [[3, 2, 1, 0, 4]], [[0]], [[1, 0]], [[2, 0, 0]], [[1, 1, 0, 1]])
def can_jump_to_end(jumps: list[int]) -> bool:
    """From position i you may jump up to jumps[i] places ahead. Say whether the last position can be reached from the first."""
    reach = 0
    for i, jump in enumerate(jumps):
        if i > reach:
            return False
        reach = max(reach, i + jump)
    return True


@cases([[2, 3, 1, 1, 4]], [[0]], [[1, 1, 1]], [[4, 1, 1, 1, 1]], [[1, 2, 1, 1]], [[2, 1, 3, 1, 1, 1]])
def fewest_jumps(jumps: list[int]) -> int:
    """From position i you may jump up to jumps[i] places ahead. Return the smallest number of jumps from the first to the last position, which can be reached."""
    count, end, reach = 0, 0, 0
    for i in range(len(jumps) - 1):
        reach = max(reach, i + jumps[i])
        if i == end:
            count, end = count + 1, reach
    return count


@cases([[1, 2, 3, 1]], [[2, 7, 9, 3, 1]], [[]], [[5]], [[2, 1, 1, 2]], [[4, 10, 3, 1, 5]])
def best_without_neighbours(values: list[int]) -> int:
    """Choose elements, no two of them neighbours in the list, with the largest sum, and return the sum. All are non-negative; choosing none gives 0."""
    take, skip = 0, 0
    for v in values:
        take, skip = skip + v, max(take, skip)
    return max(take, skip)


@cases([[1, 5, 11, 5]], [[1, 2, 3, 5]], [[]], [[2, 2]], [[3]], [[4, 4, 3, 3, 2]])
def equal_halves(numbers: list[int]) -> bool:
    """Say whether the positive integers can be divided into two groups with equal sums. An empty list can."""
    sums = {0}
    for n in numbers:
        sums |= {s + n for s in sums}
    return sum(numbers) % 2 == 0 and sum(numbers) // 2 in sums


@cases([[1, 2, 3], 3], [[5], 4], [[], 0], [[1, 1, 1], 2], [[3, -3, 3], 3], [[0, 0], 0])
def stretches_with_sum(numbers: list[int], total: int) -> int:
    """Return how many runs of one or more neighbouring elements have the given sum."""
    n = len(numbers)
    return sum(sum(numbers[i:j]) == total for i in range(n) for j in range(i + 1, n + 1))


@cases([[2, 3, 1, 2, 4, 3], 7], [[1, 1], 5], [[], 1], [[10], 10], [[1, 2, 3, 4], 6], [[5, 1, 3, 5, 10, 7], 15])
def shortest_stretch(numbers: list[int], total: int) -> int:
    """Return the length of the shortest run of neighbouring elements whose sum is at least the total, or 0 if there is none. All numbers are positive."""
    n = len(numbers)
    return min((j - i for i in range(n) for j in range(i + 1, n + 1) if sum(numbers[i:j]) >= total), default=0)


@cases([[1, 3, -1, -3, 5, 3, 6, 7], 3], [[4], 1], [[9, 8, 7], 2], [[1, 2, 3], 3], [[5, 5, 1], 2], [[-1, -2, -3, -4], 2])
def window_maxima(numbers: list[int], size: int) -> list[int]:
    """Return the maximum of every run of `size` neighbouring elements, from left to right."""
    return [max(numbers[i : i + size]) for i in range(len(numbers) - size + 1)]


@cases([[73, 74, 75, 71, 69, 72, 76, 73]], [[30, 20]], [[]], [[1, 2, 3]], [[5, 5, 6]], [[9, 1, 8, 2]])
def days_until_warmer(temperatures: list[int]) -> list[int]:
    """Return for each day how many days later it is warmer for the first time, 0 if it never is."""
    return [next((j - i for j in range(i + 1, len(temperatures)) if temperatures[j] > t), 0) for i, t in enumerate(temperatures)]


@cases([[3, 1, 2], 2], [[5], 1], [[9, 7, 8, 7], 2], [[1, 2, 3, 4], 4], [[6, 5, 4], 3], [[2, 2, 2], 3])
def kth_smallest(numbers: list[int], k: int) -> int:
    """Return the k-th smallest element, counting from 1. Equal elements count each."""
    return sorted(numbers)[k - 1]


@cases([[1, 2, 3, 4]], [[3, 1, 2]], [[5]], [[2, 2]], [[10, -10, 0, 1]], [[7, 1, 3, 9, 5]])
def median(numbers: list[int]) -> float:
    """Return the middle element of the sorted list, or the mean of the two middle ones if the length is even. The list is not empty."""
    ordered, n = sorted(numbers), len(numbers)
    return (ordered[n // 2] + ordered[(n - 1) // 2]) / 2


@cases([[2, 4, 1, 3, 5]], [[1, 2, 3]], [[]], [[3, 2, 1]], [[1, 1]], [[5, 1, 4, 2]])
def inversions(numbers: list[int]) -> int:
    """Return how many pairs of positions i < j have a larger element at i than at j."""
    n = len(numbers)
    return sum(numbers[i] > numbers[j] for i in range(n) for j in range(i + 1, n))


@cases([[1, [2, [3, 4]], 5]], [[]], [[[[]]]], [[[1], [2]]], [[[[[7]]], 8]], [[0, [1, [2, [3, [4]]]]]])
def flattened(nested: list) -> list:
    """Return the numbers in a list that holds numbers and such lists in turn, in the order in which they stand."""
    flat = []
    for item in nested:
        flat.extend(flattened(item) if isinstance(item, list) else [item])
    return flat


@cases([[1, 2, 3]], [[]], [[5]], [[3, 1]], [[1, 2, 3, 4]], [[9, 8, 7]])
def all_orders(numbers: list[int]) -> list[list[int]]:
    """Return all orders in which the different numbers can be arranged, sorted as lists. Of no number there is one order, the empty list."""
    from itertools import permutations

    return sorted(list(order) for order in permutations(numbers))


@cases([[1, 2, 3]], [[]], [[4]], [[3, 1]], [[2, 5, 8]], [[1, 2, 3, 4]])
def all_choices(numbers: list[int]) -> list[list[int]]:
    """Return all ways to choose some, none or all of the different numbers: smaller choices first, numbers in a choice in the order of the list, and choices of one size in the order in which their positions come."""
    from itertools import combinations

    return [list(c) for size in range(len(numbers) + 1) for c in combinations(numbers, size)]


@cases([[1, 2, 3, 4, 5], 2], [[1], 3], [[], 2], [[1, 2, 3], 3], [[4, 5, 6, 7], 1], [[1, 2, 3, 4, 5, 6, 7], 3])
def in_pieces(numbers: list[int], size: int) -> list[list[int]]:
    """Cut the list into pieces of the given size; the last one may be shorter."""
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


@cases([[1, 2, 4, 5, 6, 9]], [[3]], [[]], [[1, 3, 5]], [[0, 1, 2]], [[-2, -1, 4, 5, 8]])
def ranges(numbers: list[int]) -> list[str]:
    """Write sorted different integers as ranges: consecutive ones as "first-last", for example "1-3", and a single one as itself."""
    found = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return [str(a) if a == b else f"{a}-{b}" for a, b in found]
