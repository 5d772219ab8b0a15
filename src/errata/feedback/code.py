"""Programs judged by tests: the first failing ones with input, expected and got, the traceback or the limit exceeded.

A test has an ``input`` and an ``output``: a program's standard input and output, or for a function its arguments as
JSON, one a line, and its value as JSON. What a test expects never enters the sandbox.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from errata.feedback.code_reading import first_difference, read_code, same_output, same_value
from errata.feedback.custom import answer_text
from errata.feedback.sandbox import OUTPUT_BYTES, SandboxResult, isolation, run_python
from errata.feedback.sandbox.worker import processors
from errata.records import Verdict
from errata.validate import Count, Positive

__all__ = ["CodeVerifier", "read_code", "same_output"]

# What LiveCodeBench grants programs without their asking. Its order counts: builtins undo math's pow and the like, and
# the modules come last, so that `random` is the module again.
_STARRED = [
    "string",
    "re",
    "datetime",
    "collections",
    "heapq",
    "bisect",
    "copy",
    "math",
    "random",
    "statistics",
    "itertools",
    "functools",
    "operator",
    "io",
    "sys",
    "json",
    "builtins",
    "typing",
]
_GRANTED = "".join(f"from {name} import *\n" for name in _STARRED) + (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, "
    "operator, io, sys, json\nsys.setrecursionlimit(50_000)\n"
)

# As LiveCodeBench does: 50,000 digits of an int may be written, and a program may start no other.
_DRIVER = """
def errata_prepare():
    import os, sys
    sys.set_int_max_str_digits(50_000)
    def errata_refuse(*_, **__):
        raise PermissionError("a program may not start another one")
    import _posixsubprocess
    _posixsubprocess.fork_exec = errata_refuse
    for name in ("system", "fork", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve"):
        if hasattr(os, name):
            setattr(os, name, errata_refuse)
    if sys.version_info >= (3, 12):
        # From 3.12 on a recursion through C functions ends after some hundred or thousand levels, whatever setrecursionlimit
        # says, and lru_cache is one of them. The library's own version in Python has no such limit.
        import functools, importlib.util, types, _functools
        without = types.ModuleType("_functools")
        vars(without).update({k: v for k, v in vars(_functools).items() if k != "_lru_cache_wrapper"})
        sys.modules["_functools"] = without
        in_python = importlib.util.module_from_spec(functools.__spec__)
        functools.__spec__.loader.exec_module(in_python)
        sys.modules["_functools"] = _functools
        functools._lru_cache_wrapper = in_python._lru_cache_wrapper

errata_prepare()

def errata_load(source, granted, names):
    import linecache
    linecache.cache["program.py"] = (len(source), None, [line + "\\n" for line in source.split("\\n")], "program.py")
    exec(granted, names)
    return compile(source, "program.py", "exec", dont_inherit=True)

def errata_fail(error):
    import sys, traceback
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != "program.py":
        trace = trace.tb_next
    told = traceback.TracebackException(type(error), error, trace)
    told.stack[:] = [frame for frame in told.stack if frame.name != "errata_refuse"]
    print("".join(told.format()), end="", file=sys.stderr)
    sys.exit(1)
"""

_RUN_PROGRAM = """
try:
    exec(errata_load({source!r}, {granted!r}, globals()))
except SystemExit as error:
    if not isinstance(error.code, str):
        raise
    import sys
    sys.exit(error.code + "\\n" + {mark!r})  # a last word, no failure
except Exception as error:
    errata_fail(error)
"""

_RUN_FUNCTION = """
import json, sys
arguments = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip(" \\t\\r")]
names = {{"__name__": "solution"}}
try:
    exec(errata_load({source!r}, {granted!r}, names), names)
    owner = names["Solution"]() if "Solution" in names else None
    function = getattr(owner, {name!r}, None) or names.get({name!r})
    if function is None:
        sys.exit("NameError: the program defines no function " + {name!r})
    value = function(*arguments)
except Exception as error:
    errata_fail(error)
print("\\n" + {mark!r} + json.dumps(value, default=repr))
"""

_LAST_WORD = ":errata-exit"
_LEAST_SHOWN = 200  # characters of feedback on one test
_LIMITS = {
    "timeout": "exceeded the time limit of {0:g} s",
    "memory": "exceeded the memory limit of {1:g} MB",
    "output": "printed more than {2} MB",
}


@dataclass(frozen=True, slots=True)
class _Failure:
    """A test that failed: what happened, and what to show of it, by label."""

    what: str
    shown: tuple[tuple[str, str], ...]


class CodeVerifier:
    """Judges programs as a TRL reward function does: ``verifier(completions=..., tests=[...], function=[...])``.

    Reads the columns ``tests`` (JSON text, a list of tests) and ``function`` (the name of the function to call, empty
    for a program that reads standard input and prints). The score is 1 if all tests pass, else 0, and running stops at
    the ``show``-th failure or where a limit is exceeded; with ``partial`` all tests are run and the score is the share
    that passes.

    Args:
        timeout_s: wall time of one test; LiveCodeBench's own by default.
        memory_mb: memory of one test; AtCoder's limit by default.
        show: failing tests that the feedback describes.
        budget: characters of feedback at most; long inputs and outputs lose their middle.
        float_tolerance: the difference, absolute or relative, that is allowed where a test expects a number with a point
            or an exponent; contests mostly allow 1e-5 to 1e-9. 0 compares the decimals exactly, as LiveCodeBench does.
        workers: programs run at a time; by default this process's share of the processors.
        unsafe_local: allow running programs without isolation where there is none.
    Raises:
        RuntimeError: programs cannot be isolated here; says what to do.
    """

    limits_own_time = True

    def __init__(
        self,
        *,
        timeout_s: Positive = 6.0,
        memory_mb: Positive = 1024,
        show: int = 2,
        budget: int = 2000,
        partial: bool = False,
        float_tolerance: float = 1e-5,
        workers: Count | None = None,
        unsafe_local: bool = False,
    ) -> None:
        if show < 1 or budget < 200:
            raise ValueError(f"show must be at least 1 and budget at least 200, not {show} and {budget}")
        if not 0 <= float_tolerance < 1:
            raise ValueError(f"float_tolerance: must be from 0 to below 1, not {float_tolerance}")
        self.float_tolerance = float_tolerance
        self.timeout_s, self.memory_mb, self.unsafe_local = timeout_s, memory_mb, unsafe_local
        self.show, self.budget, self.partial = show, budget, partial
        self.workers = workers or processors()
        self.__name__ = "code"
        if not (isolation() or unsafe_local):
            raise RuntimeError(run_python("").stderr)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "tests" not in columns:
            raise ValueError("columns: the code verifier reads the column 'tests', and the data has none")
        functions = columns.get("function") or [""] * len(completions)
        tests = [_tests(given, row) for row, given in enumerate(columns["tests"])]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._judge, map(answer_text, completions), tests, functions))

    def _judge(self, text: str, tests: list[dict[str, str]], function: str | None) -> Verdict:
        function = function or ""
        source, problem = read_code(text, function)
        if source is None:
            wanted = "put the whole program in one ```python block"
            return Verdict(0.0, f"No program could be read: {problem}; {wanted}.", kind="format", info=_info(0, tests))
        failures: list[tuple[int, _Failure]] = []
        passed = 0
        for number, test in enumerate(tests, start=1):
            result, value = self._run(source, test["input"], function)
            if result.status == "refused":
                return Verdict(None, kind="error", info={"error": result.stderr})
            failure = self._failure(test, function, result, value)
            if failure is None:
                passed += 1
                continue
            failures.append((number, failure))
            if not self.partial and (len(failures) >= self.show or result.status in _LIMITS):
                break
        if not failures:
            return Verdict(1.0, info=_info(passed, tests))
        score = passed / len(tests) if self.partial else 0.0
        feedback = self._feedback(failures[: self.show], len(tests))
        return Verdict(score, feedback, kind="tests", info=_info(passed, tests, failures[0][1].what))

    def _run(self, source: str, given: str, function: str) -> tuple[SandboxResult, str | None]:
        """What became of one test, and the JSON of the function's value if there is one."""
        mark = secrets.token_hex(8) + (":" if function else _LAST_WORD)
        driver = _RUN_FUNCTION if function else _RUN_PROGRAM
        program = _DRIVER + driver.format(source=source, granted=_GRANTED, name=function, mark=mark)
        result = run_python(
            program, stdin=given, timeout_s=self.timeout_s, memory_mb=self.memory_mb, unsafe_local=self.unsafe_local
        )
        found, value = result.stdout.rpartition("\n" + mark)[1:]
        return result, value.strip() if function and found else None

    def _failure(
        self, test: dict[str, str], function: str, result: SandboxResult, value: str | None
    ) -> _Failure | None:
        given = ("Call", _call(function, test["input"])) if function else ("Input", test["input"])
        expected = ("Expected", test["output"])
        if result.status in _LIMITS:
            what = _LIMITS[result.status].format(self.timeout_s, self.memory_mb, OUTPUT_BYTES >> 20)
            return _Failure(what, (given,))
        if result.status == "error":
            error, _, last_word = result.stderr.rstrip("\n").rpartition("\n")
            if not function and last_word.endswith(_LAST_WORD) and self._same(test, result.stdout):
                return None
            error = error if last_word.endswith(_LAST_WORD) else result.stderr
            error = error.strip("\n") or f"exit code {result.returncode}"
            return _Failure("raised an error", (given, ("Error", error)))
        if function and value is None:
            return _Failure("ended before its function returned", (given,))
        if function:
            assert value is not None
            same = same_value(test["output"], value, self.float_tolerance)
            return None if same else _Failure("returned a wrong value", (given, expected, ("Returned", value)))
        if self._same(test, result.stdout):
            return None
        where = first_difference(test["output"], result.stdout, self.float_tolerance)
        first = (("First difference", where),) if where else ()
        return _Failure("printed a wrong output", (given, expected, ("Printed", result.stdout), *first))

    def _same(self, test: dict[str, str], printed: str) -> bool:
        return same_output(test["output"], printed, self.float_tolerance)

    def _feedback(self, failures: Sequence[tuple[int, _Failure]], n_tests: int) -> str:
        errors = [dict(failure.shown).get("Error") for _, failure in failures]
        new = [pair for i, pair in enumerate(failures) if errors[i] is None or errors[i] not in errors[:i]]
        new = new[: max(1, self.budget // _LEAST_SHOWN)]
        parts = []
        for number, failure in new:
            said = [f"Test {number} of {n_tests}: the program {failure.what}."]
            room = self.budget // len(new) - len(said[0]) - 2
            for i, (label, text) in enumerate(failure.shown):  # what is short leaves its room to what follows
                limit = room // (len(failure.shown) - i) - len(label) - 3
                said.append(f"{label}:\n" + _cut(text.strip("\n") or "(nothing)", limit))
                room -= len(said[-1]) + 1
            parts.append("\n".join(said))
        return "\n\n".join(parts)


def _tests(given: Any, row: int) -> list[dict[str, str]]:
    try:
        return _parsed(given if isinstance(given, str) else json.dumps(given))
    except (ValueError, TypeError) as error:
        raise ValueError(f"tests: row {row} of the batch {error}") from None


@lru_cache(maxsize=256)
def _parsed(tests_json: str) -> list[dict[str, str]]:
    try:
        tests = json.loads(tests_json)
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None
    if not isinstance(tests, list) or not all(
        isinstance(t, dict) and isinstance(t.get("input"), str) and isinstance(t.get("output"), str) for t in tests
    ):
        raise ValueError("must be a list of tests, each with the texts 'input' and 'output'")
    if not tests:
        raise ValueError("has none, so that any program would pass")
    return tests


def _info(passed: int, tests: Sequence[Any], failed: str = "") -> dict[str, Any]:
    return {"passed": passed, "tests": len(tests), **({"failed": failed} if failed else {})}


def _call(function: str, given: str) -> str:
    return f"{function}({', '.join(line.strip() for line in given.split(chr(10)) if line.strip())})"


def _cut(text: str, limit: int) -> str:
    """The text without its middle if it is longer than ``limit`` characters; the end keeps more: it holds the error."""
    if len(text) <= limit:
        return text
    limit -= len("\n[... 10000000 characters ...]\n")
    head, tail = max(limit * 2 // 5, 0), max(limit * 3 // 5, 1)
    return f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[-tail:]}"
