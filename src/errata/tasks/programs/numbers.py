"""Problems on whole numbers."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases([483], [7], [0], [1000], [99999], [120034])
def digit_sum(n: int) -> int:
    """Return the sum of the decimal digits of the non-negative integer n."""
    return sum(int(digit) for digit in str(n))


@cases([4732], [5], [0], [10], [808], [919293])
def even_digits(n: int) -> int:
    """Return how many decimal digits of the non-negative integer n are even. The number 0 has one even digit."""
    return sum(int(digit) % 2 == 0 for digit in str(n))


@cases([942], [38], [7], [0], [999999], [1000000007])
def repeated_digit_sum(n: int) -> int:
    """Replace the non-negative integer n by the sum of its digits until one digit is left, and return that digit."""
    while n > 9:
        n = sum(int(digit) for digit in str(n))
    return n


@cases([1203], [-450], [0], [7], [-1], [-9080])
def reversed_number(n: int) -> int:
    """Return the integer n with its decimal digits in reverse order. The sign stays, and leading zeros are dropped."""
    sign = -1 if n < 0 else 1
    return sign * int(str(abs(n))[::-1])


@cases([12], [7], [1], [36], [97], [100])
def divisors(n: int) -> list[int]:
    """Return all positive divisors of the positive integer n, smallest first."""
    return [d for d in range(1, n + 1) if n % d == 0]


@cases([84], [13], [1], [1024], [9973], [600])
def prime_factors(n: int) -> list[int]:
    """Return the prime factors of the positive integer n in ascending order, each as often as it divides n. For 1 the list is empty."""
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found


@cases([10], [2], [1], [0], [30], [100])
def primes_below(n: int) -> list[int]:
    """Return all prime numbers smaller than n, smallest first."""
    return [k for k in range(2, n) if all(k % d for d in range(2, int(k**0.5) + 1))]


@cases([28], [10], [1], [6], [496], [12])
def kind_of_number(n: int) -> str:
    """Compare the sum of the divisors of n that are smaller than n with n. Return "perfect" if they are equal, "poor" if the sum is smaller, "rich" if it is larger."""
    total = sum(d for d in range(1, n) if n % d == 0)
    return "perfect" if total == n else "poor" if total < n else "rich"


@cases([12, 18], [7, 5], [0, 4], [9, 0], [100, 75], [17, 51])
def common_divisor(a: int, b: int) -> int:
    """Return the greatest common divisor of two non-negative integers that are not both 0. That of 0 and a number is the number."""
    while b:
        a, b = b, a % b
    return a


@cases([[4, 6]], [[5]], [[2, 3, 7]], [[10, 10]], [[1, 9, 12]], [[8, 6, 15]])
def common_multiple(numbers: list[int]) -> int:
    """Return the smallest positive integer that every number of the list divides. The list is not empty and all are positive."""
    from math import lcm

    return lcm(*numbers)


@cases([6], [1], [27], [2], [97], [16])
def steps_to_one(n: int) -> int:
    """Halve n if it is even, else replace it by 3 * n + 1. Return how many such steps lead from the positive integer n to 1."""
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


@cases([10, 2], [255, 16], [0, 7], [5, 5], [1000, 36], [6, 3])
def in_base(n: int, base: int) -> str:
    """Write the non-negative integer n in the given base, from 2 to 36. Digits beyond 9 are the small letters a to z."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while n:
        n, rest = divmod(n, base)
        text = digits[rest] + text
    return text or "0"


@cases([13], [0], [255], [256], [1], [1023])
def ones_in_binary(n: int) -> int:
    """Return how many ones the binary notation of the non-negative integer n has."""
    return bin(n).count("1")


@cases([9], [1], [0], [529], [2], [1024])
def longest_zero_run(n: int) -> int:
    """Return the length of the longest run of zeros that stands between two ones in the binary notation of n, or 0 if there is none."""
    parts = bin(n)[2:].strip("0").split("1")
    return max(len(part) for part in parts)


@cases([1994], [4], [9], [40], [3999], [2026])
def to_roman(n: int) -> str:
    """Write n, from 1 to 3999, as a Roman numeral in capital letters with the usual subtractive forms (IV, IX, XL, XC, CD, CM)."""
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    names = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    text = ""
    for value, name in zip(values, names):
        while n >= value:
            text += name
            n -= value
    return text


@cases(["XIV"], ["III"], ["MCMXCIV"], ["D"], ["XLIX"], ["MMXXVI"])
def from_roman(text: str) -> int:
    """Return the value of a valid Roman numeral in capital letters."""
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for i, letter in enumerate(text):
        value = values[letter]
        total += -value if i + 1 < len(text) and values[text[i + 1]] > value else value
    return total


@cases([153], [10], [0], [9474], [370], [9475])
def equals_digit_powers(n: int) -> bool:
    """Say whether the non-negative integer n equals the sum of its digits, each raised to the power of the number of digits."""
    return n == sum(int(digit) ** len(str(n)) for digit in str(n))


@cases([5, 3], [5, 9], [0, 4], [10, 10], [20, 3], [7, 1])
def choose(n: int, k: int) -> int:
    """Return in how many ways k things can be chosen out of n, 0 if k is larger than n."""
    from math import comb

    return comb(n, k)


@cases([5], [1], [0], [10], [100], [24])
def trailing_zeros(n: int) -> int:
    """Return with how many zeros the decimal notation of 1 * 2 * ... * n ends. For n = 0 the product is 1."""
    count = 0
    while n:
        n //= 5
        count += n
    return count


@cases([16], [17], [0], [1], [99], [1000000])
def square_root(n: int) -> int:
    """Return the largest integer whose square is not larger than the non-negative integer n."""
    from math import isqrt

    return isqrt(n)


@cases([50], [1], [2], [7], [25], [3])
def two_squares(n: int) -> list[list[int]]:
    """Return all pairs [a, b] of non-negative integers with a <= b and a*a + b*b equal to n, the smallest a first."""
    return [[a, b] for a in range(n + 1) for b in range(a, n + 1) if a * a + b * b == n]


@cases([10], [1], [0], [2], [50], [90])
def fibonacci(n: int) -> int:
    """Return the n-th number of the sequence that starts with 0, 1 and in which each further number is the sum of the two before it. The first has number 0."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@cases([100], [1], [4], [0], [64], [11])
def sum_of_fibonacci(n: int) -> list[int]:
    """Write n as a sum of numbers out of 1, 2, 3, 5, 8, 13, ...: take the largest that fits, then go on with the rest. Return the parts in that order; for 0 the list is empty."""
    numbers = [1, 2]
    while numbers[-1] <= n:
        numbers.append(numbers[-1] + numbers[-2])
    parts = []
    for number in reversed(numbers):
        if number <= n:
            parts.append(number)
            n -= number
    return parts


@cases([2024], [1900], [2000], [2023], [4], [100])
def is_leap_year(year: int) -> bool:
    """Say whether the year is a leap year: divisible by 4, but not by 100 unless also by 400."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


@cases([3725], [59], [0], [86399], [3600], [90061])
def clock_time(seconds: int) -> str:
    """Write a number of seconds as "H:MM:SS". Hours are not padded and can exceed 23; minutes and seconds have two digits."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


@cases([90], [30], [0], [3661], [86400], [172805])
def spoken_time(seconds: int) -> str:
    """Write a number of seconds as days, hours, minutes and seconds, such as "1m 30s", with the letters d, h, m and s. Parts that are 0 are left out; 0 seconds is "0s"."""
    parts = []
    for letter, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{letter}")
    return " ".join(parts) or "0s"


@cases([3, 0], [12, 30], [6, 0], [9, 15], [1, 59], [11, 54])
def clock_angle(hour: int, minute: int) -> float:
    """Return the smaller angle in degrees between the hands of a clock at the given time (hour from 1 to 12). The hour hand moves on with the minutes."""
    angle = abs((hour % 12) * 30 + minute * 0.5 - minute * 6)
    return min(angle, 360 - angle)


@cases([63], [4], [100], [1], [99], [41])
def coins(cents: int) -> list[int]:
    """Pay a sum with coins of 50, 20, 10, 5, 2 and 1, always taking the largest that fits. Return the coins in the order they are taken."""
    taken = []
    for coin in (50, 20, 10, 5, 2, 1):
        while cents >= coin:
            taken.append(coin)
            cents -= coin
    return taken


@cases([[1, 3, 4], 6], [[2], 3], [[5, 2], 0], [[1, 5, 10], 27], [[4, 9], 11], [[7, 3], 24])
def fewest_coins(coins: list[int], total: int) -> int:
    """Return the smallest number of coins with these values (each as often as you like) whose sum is the total, or -1 if there is none."""
    best = [0] + [None] * total
    for amount in range(1, total + 1):
        options = [best[amount - c] for c in coins if c <= amount and best[amount - c] is not None]
        best[amount] = min(options) + 1 if options else None
    return -1 if best[total] is None else best[total]


@cases([[1, 2, 5], 5], [[2], 3], [[3, 5], 0], [[1, 2], 4], [[10, 20], 50], [[7], 14])
def ways_to_pay(coins: list[int], total: int) -> int:
    """Return in how many ways the total can be paid with coins of these different values, each as often as you like. The order of coins does not matter; 0 can be paid in one way."""
    ways = [1] + [0] * total
    for coin in coins:
        for amount in range(coin, total + 1):
            ways[amount] += ways[amount - coin]
    return ways[total]


@cases([4], [1], [0], [7], [20], [2])
def ways_up(n: int) -> int:
    """Return in how many ways n stairs can be climbed with steps of 1, 2 or 3 stairs. For 0 stairs there is one way."""
    a, b, c = 0, 0, 1
    for _ in range(n):
        a, b, c = b, c, a + b + c
    return c


@cases([3, 5], [2, 10], [7, 0], [5, 100], [10, 9], [1, 1])
def last_digit_of_power(a: int, b: int) -> int:
    """Return the last decimal digit of a to the power of b, for non-negative integers that are not both 0."""
    return pow(a, b, 10)


@cases([21], [22], [1], [5], [585], [9])
def same_in_both(n: int) -> bool:
    """Say whether the decimal and the binary notation of the positive integer n both read the same backwards."""
    return str(n) == str(n)[::-1] and bin(n)[2:] == bin(n)[2:][::-1]


@cases([13], [1], [86], [90], [121], [99])
def next_mirror(n: int) -> int:
    """Return the smallest integer larger than n whose decimal notation reads the same backwards."""
    n += 1
    while str(n) != str(n)[::-1]:
        n += 1
    return n


@cases([[3, 1, 2]], [[9]], [[9, 34, 30]], [[0, 0]], [[12, 121]], [[50, 5, 56]])
def largest_joined(numbers: list[int]) -> str:
    """Write the non-negative integers of the list one after another, in the order that makes the largest number, and return it as text. If all are 0, the result is "0"."""
    from functools import cmp_to_key

    texts = [str(n) for n in numbers]
    texts.sort(key=cmp_to_key(lambda a, b: -1 if a + b > b + a else 1 if a + b < b + a else 0))
    joined = "".join(texts)
    return "0" if joined[0] == "0" else joined


@cases([7, 3], [1, 1], [5, 2], [10, 4], [41, 3], [6, 7])
def last_in_circle(people: int, step: int) -> int:
    """People numbered from 1 stand in a circle. Counting from person 1, every step-th leaves until one remains. Return that person's number."""
    position = 0
    for size in range(2, people + 1):
        position = (position + step) % size
    return position + 1
