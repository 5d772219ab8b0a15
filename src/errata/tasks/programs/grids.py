"""Problems on grids and matrices."""

from __future__ import annotations

from errata.tasks.programs._problem import cases


@cases([[[1, 2], [3, 4], [5, 6]]], [[[1]]], [[[1, 2, 3]]], [[[7], [8]]], [[[0, -1], [2, 3]]], [[[1, 2, 3], [4, 5, 6]]])
def turned_over(grid: list[list[int]]) -> list[list[int]]:
    """Return the grid whose rows are the columns of the given one, from left to right."""
    return [list(column) for column in zip(*grid)]


@cases([[[1, 2], [3, 4]]], [[[5]]], [[[1, 2, 3], [4, 5, 6]]], [[[1], [2]]], [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], [[[0, 0], [1, 0]]])
def quarter_turn(grid: list[list[int]]) -> list[list[int]]:
    """Turn the grid by 90 degrees clockwise."""
    return [list(row) for row in zip(*grid[::-1])]


@cases([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], [[[1]]], [[[1, 2, 3, 4]]], [[[1], [2], [3]]], [[[1, 2], [3, 4], [5, 6]]], [[[1, 2, 3], [4, 5, 6]]])
def spiral(grid: list[list[int]]) -> list[int]:
    """Return the numbers of the grid in a spiral: along the first row to the right, down the last column, and so on inwards."""
    found, left = [], [list(row) for row in grid]
    while left:
        found += left.pop(0)
        left = [list(row) for row in zip(*left)][::-1]
    return found


@cases([3], [1], [2], [4], [5], [6])
def spiral_grid(n: int) -> list[list[int]]:
    """Return an n times n grid filled with 1, 2, 3, ... in a spiral: along the first row to the right, down the last column, and so on inwards."""
    grid, r, c, dr, dc = [[0] * n for _ in range(n)], 0, 0, 0, 1
    for k in range(1, n * n + 1):
        grid[r][c] = k
        if not (0 <= r + dr < n and 0 <= c + dc < n) or grid[r + dr][c + dc]:
            dr, dc = dc, -dr
        r, c = r + dr, c + dc
    return grid


@cases([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[[2]], [[3]]], [[[1, 0], [0, 1]], [[9, 8], [7, 6]]], [[[1, 2, 3]], [[4], [5], [6]]], [[[1], [2]], [[3, 4]]], [[[0, 0]], [[1], [1]]])
def matrix_product(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    """Return the matrix product of a and b. a has as many columns as b has rows."""
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


@cases([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], [[[5]]], [[[1, 2], [3, 4]]], [[[0, 0, 1], [0, 1, 0], [1, 0, 0]]], [[[2, 0, 0, 2], [0, 2, 2, 0], [0, 2, 2, 0], [2, 0, 0, 2]]], [[[1, 9, 1], [9, 1, 9], [1, 9, 1]]])
def diagonal_sum(grid: list[list[int]]) -> int:
    """Return the sum of both diagonals of the square grid. A number on both counts once."""
    n = len(grid)
    return sum(grid[i][j] for i in range(n) for j in {i, n - 1 - i})


@cases([[[2, 7, 6], [9, 5, 1], [4, 3, 8]]], [[[1]]], [[[1, 2], [3, 4]]], [[[5, 5, 5], [5, 5, 5], [5, 5, 5]]], [[[8, 1, 6], [3, 5, 7], [4, 9, 2]]], [[[1, 1, 1], [1, 1, 1], [1, 1, 2]]])
def is_magic(grid: list[list[int]]) -> bool:
    """Say whether all rows, all columns and both diagonals of the square grid have the same sum."""
    n = len(grid)
    sums = {sum(row) for row in grid} | {sum(column) for column in zip(*grid)}
    sums |= {sum(grid[i][i] for i in range(n)), sum(grid[i][n - 1 - i] for i in range(n))}
    return len(sums) == 1


@cases([["11000", "11000", "00100", "00011"]], [["0"]], [["1"]], [["101", "010", "101"]], [["111", "111"]], [["1100", "0011", "1100"]])
def islands(rows: list[str]) -> int:
    """In a map of "1" for land and "0" for water, land squares that touch along an edge belong to one island. Return the number of islands."""
    land = {(r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark == "1"}
    count = 0
    while land:
        count, todo = count + 1, [land.pop()]
        for r, c in todo:
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in land:
                    land.remove(near)
                    todo.append(near)
    return count


@cases([["110", "011", "000"]], [["0"]], [["1"]], [["11111"]], [["101", "111", "101"]], [["100", "001", "011"]])
def largest_island(rows: list[str]) -> int:
    """In a map of "1" for land and "0" for water, land squares that touch along an edge belong to one island. Return the number of squares of the largest, 0 without land."""
    land = {(r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark == "1"}
    best = 0
    while land:
        todo = [land.pop()]
        for r, c in todo:
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in land:
                    land.remove(near)
                    todo.append(near)
        best = max(best, len(todo))
    return best


@cases([["..#", "...", "#.."]], [["."]], [["#."]], [["...", "##.", "..."]], [[".#.", "###", ".#."]], [["....", ".##.", "...."]])
def way_out(rows: list[str]) -> int:
    """Go from the upper left to the lower right square over squares with ".", one step up, down, left or right at a time. Return the smallest number of steps, or -1 if there is no way or a corner is blocked by "#"."""
    height, width = len(rows), len(rows[0])
    if rows[0][0] == "#":
        return -1
    steps, queue = {(0, 0): 0}, [(0, 0)]
    for r, c in queue:
        for y, x in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if 0 <= y < height and 0 <= x < width and rows[y][x] == "." and (y, x) not in steps:
                steps[y, x] = steps[r, c] + 1
                queue.append((y, x))
    return steps.get((height - 1, width - 1), -1)


@cases([3, 3], [1, 1], [3, 7], [2, 2], [1, 9], [10, 10])
def ways_through(rows: int, columns: int) -> int:
    """Return the number of ways from the upper left to the lower right square of a grid, with steps to the right and down only."""
    from math import comb

    return comb(rows + columns - 2, rows - 1)


@cases([[[1, 3, 1], [1, 5, 1], [4, 2, 1]]], [[[7]]], [[[1, 2, 3]]], [[[1], [2]]], [[[5, 1], [1, 5]]], [[[0, 9, 0], [0, 9, 0], [0, 0, 0]]])
def cheapest_way(grid: list[list[int]]) -> int:
    """Go from the upper left to the lower right square with steps to the right and down only. Return the smallest sum of the numbers on the way, both ends included."""
    best = {}
    for r, row in enumerate(grid):
        for c, cost in enumerate(row):
            before = [best[p] for p in ((r - 1, c), (r, c - 1)) if p in best]
            best[r, c] = cost + (min(before) if before else 0)
    return best[len(grid) - 1, len(grid[0]) - 1]


@cases([[[2], [3, 4], [6, 5, 7], [4, 1, 8, 3]]], [[[-10]]], [[[1], [2, 3]]], [[[0], [1, 1], [2, 0, 2]]], [[[5], [9, 1], [1, 9, 9]]], [[[1], [1, 1], [1, 1, 1]]])
def triangle_way(rows: list[list[int]]) -> int:
    """Go down a triangle of numbers, from each number to one of the two below it (same place or one to the right). Return the smallest sum of a way from top to bottom."""
    best = rows[-1]
    for row in rows[-2::-1]:
        best = [n + min(best[i], best[i + 1]) for i, n in enumerate(row)]
    return best[0]


@cases([5], [1], [2], [3], [6], [8])
def pascal(n: int) -> list[list[int]]:
    """Return the first n rows of Pascal's triangle: each row begins and ends with 1, and every other number is the sum of the two above it."""
    rows = [[1]]
    while len(rows) < n:
        last = rows[-1]
        rows.append([1, *(a + b for a, b in zip(last, last[1:])), 1])
    return rows


@cases([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], [[[0]]], [[[1, 2], [3, 4]]], [[[0, 1, 2], [3, 4, 5], [6, 7, 0]]], [[[5, 0, 5]]], [[[1, 2], [0, 3], [4, 5]]])
def zero_lines(grid: list[list[int]]) -> list[list[int]]:
    """Replace by 0 every number in whose row or column the given grid has a 0."""
    rows = {r for r, row in enumerate(grid) if 0 in row}
    columns = {c for row in grid for c, n in enumerate(row) if n == 0}
    return [[0 if r in rows or c in columns else n for c, n in enumerate(row)] for r, row in enumerate(grid)]


@cases([[".*.", "..*", "..."]], [["."]], [["*"]], [["**", "**"]], [["...", ".*.", "..."]], [["*..*", "....", "*..*"]])
def mine_field(rows: list[str]) -> list[str]:
    """Replace every "." by the number of "*" among its up to eight neighbours; "*" stays."""
    height, width = len(rows), len(rows[0])

    def mines(r: int, c: int) -> int:
        return sum(rows[y][x] == "*" for y in range(max(r - 1, 0), min(r + 2, height)) for x in range(max(c - 1, 0), min(c + 2, width)))

    return ["".join("*" if rows[r][c] == "*" else str(mines(r, c)) for c in range(width)) for r in range(height)]


@cases([[".....", "..#..", "..#..", "..#..", "....."]], [["##", "##"]], [["#"]], [["..."]], [["###"]], [["....", ".##.", ".##.", "...."]])
def next_generation(rows: list[str]) -> list[str]:
    """Return the next generation of the game of life: "#" lives on with two or three living ones among its eight neighbours, "." comes to life with exactly three. Outside the grid nothing lives."""
    height, width = len(rows), len(rows[0])

    def alive(r: int, c: int) -> bool:
        near = sum(rows[y][x] == "#" for y in range(max(r - 1, 0), min(r + 2, height)) for x in range(max(c - 1, 0), min(c + 2, width)) if (y, x) != (r, c))
        return near == 3 or (near == 2 and rows[r][c] == "#")

    return ["".join("#" if alive(r, c) else "." for c in range(width)) for r in range(height)]


@cases([["XOX", "OXO", "OXX"]], [["...", "...", "..."]], [["OOO", "XX.", "X.."]], [["XO.", "XO.", "X.."]], [["XOX", "XOO", "OXX"]], [["..O", ".OX", "OXX"]])
def tic_tac_toe(rows: list[str]) -> str:
    """Return "X" or "O" if that player has three in a row, column or diagonal, else "draw" if no square is free, else "open". At most one player has won."""
    lines = [*rows, *("".join(c) for c in zip(*rows)), rows[0][0] + rows[1][1] + rows[2][2], rows[0][2] + rows[1][1] + rows[2][0]]
    for player in "XO":
        if player * 3 in lines:
            return player
    return "open" if any("." in row for row in rows) else "draw"


@cases([["1234", "3412", "2143", "4321"]], [["1"]], [["12", "12"]], [["12", "21"]], [["123", "231", "312"]], [["123", "312", "321"]])
def each_once(rows: list[str]) -> bool:
    """Say whether every row and every column of the n times n square holds each of the digits from 1 to n exactly once."""
    wanted = [str(k) for k in range(1, len(rows) + 1)]
    return all(sorted(line) == wanted for line in [*rows, *zip(*rows)])


@cases([4, 0, 0], [8, 3, 3], [1, 0, 0], [5, 4, 4], [3, 1, 1], [8, 7, 0])
def knight_moves(size: int, row: int, column: int) -> list[list[int]]:
    """Return the squares [row, column] that a knight on the given square of a board of the given size can reach in one move, sorted. Rows and columns are counted from 0."""
    jumps = [(a * x, b * y) for x, y in ((1, 2), (2, 1)) for a in (1, -1) for b in (1, -1)]
    squares = [[row + r, column + c] for r, c in jumps]
    return sorted(s for s in squares if 0 <= s[0] < size and 0 <= s[1] < size)


@cases([[[0, 0]], 2, 4], [[[3, 3]], 1, 0], [[[0, 0], [1, 1]], 2, 2], [[[0, 7]], 7, 0], [[[2, 3]], 3, 5], [[[4, 4], [0, 1]], 5, 6])
def queen_attacks(queens: list[list[int]], row: int, column: int) -> bool:
    """Say whether one of the queens [row, column] stands in the same row, column or diagonal as the given square. Queens do not block each other."""
    return any(r == row or c == column or abs(r - row) == abs(c - column) for r, c in queens)


@cases([4], [1], [2], [3], [5], [6])
def queen_placements(n: int) -> int:
    """Return in how many ways n queens can stand on an n times n board so that no two share a row, column or diagonal."""

    def place(columns: list[int]) -> int:
        if len(columns) == n:
            return 1
        row = len(columns)
        free = [c for c in range(n) if all(c != d and abs(c - d) != row - r for r, d in enumerate(columns))]
        return sum(place([*columns, c]) for c in free)

    return place([])


@cases([["ABCE", "SFCS", "ADEE"], "ABCCED"], [["A"], "A"], [["AB"], "BA"], [["ABC", "DEF"], "AEB"], [["AAA"], "AAAA"], [["CAT", "XXS"], "CATS"])
def word_in_grid(rows: list[str], word: str) -> bool:
    """Say whether the word can be read along neighbouring squares (up, down, left, right) without using a square twice."""

    def found(r: int, c: int, rest: str, used: set) -> bool:
        if not rest:
            return True
        if not (0 <= r < len(rows) and 0 <= c < len(rows[0])) or (r, c) in used or rows[r][c] != rest[0]:
            return False
        return any(found(r + dr, c + dc, rest[1:], used | {(r, c)}) for dr, dc in ((1, 0), (-1, 0), (0, 1), (0, -1)))

    return any(found(r, c, word, set()) for r in range(len(rows)) for c in range(len(rows[0])))


@cases([[[1, 1, 0], [1, 0, 1]], 0, 0, 5], [[[0]], 0, 0, 0], [[[2, 2], [2, 3]], 1, 1, 2], [[[1, 0, 1]], 0, 2, 7], [[[4, 4], [4, 4]], 0, 1, 1], [[[1, 2], [1, 2]], 1, 0, 9])
def fill(grid: list[list[int]], row: int, column: int, colour: int) -> list[list[int]]:
    """Give the new colour to the given square and to all squares of its old colour that are connected to it along edges through squares of that colour. Return the grid."""
    painted, old, todo = [list(r) for r in grid], grid[row][column], [(row, column)]
    seen = {(row, column)}
    for r, c in todo:
        painted[r][c] = colour
        for y, x in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if 0 <= y < len(grid) and 0 <= x < len(grid[0]) and grid[y][x] == old and (y, x) not in seen:
                seen.add((y, x))
                todo.append((y, x))
    return painted


@cases([[[1, 4, 7], [2, 5, 8], [3, 6, 9]], 5], [[[1]], 2], [[[1, 2], [3, 4]], 4], [[[-5, 0], [0, 5]], 0], [[[1, 3, 5]], 6], [[[2, 4], [6, 8]], 7])
def is_in_sorted_grid(grid: list[list[int]], n: int) -> bool:
    """Rows and columns of the grid are sorted in ascending order. Say whether it holds n."""
    return any(n in row for row in grid)


@cases([[[1, 0, 1], [0, 0, 0], [1, 0, 1]]], [[[0]]], [[[1]]], [[[1, 1], [0, 0]]], [[[0, 1, 0]]], [[[1, 0], [0, 0]]])
def edge_length(grid: list[list[int]]) -> int:
    """Squares with 1 are land. Return how many edges lie between land and something that is not land, the outside included."""
    height, width = len(grid), len(grid[0])
    total = 0
    for r in range(height):
        for c in range(width):
            if grid[r][c]:
                for y, x in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                    total += not (0 <= y < height and 0 <= x < width and grid[y][x])
    return total


@cases([["10100", "10111", "11111", "10010"]], [["0"]], [["1"]], [["01", "10"]], [["111", "111", "111"]], [["0111", "1111", "0111"]])
def largest_square(rows: list[str]) -> int:
    """Return the number of squares in the largest square block that consists of "1" only, 0 if there is none."""
    side, best = {}, 0
    for r, row in enumerate(rows):
        for c, mark in enumerate(row):
            if mark == "1":
                side[r, c] = 1 + min(side.get((r - 1, c), 0), side.get((r, c - 1), 0), side.get((r - 1, c - 1), 0))
                best = max(best, side[r, c])
    return best * best
