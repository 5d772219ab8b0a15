"""Programs judged by tests, in the real sandbox."""

import json
import sys

import pytest

from errata.feedback.code import CodeVerifier, read_code, same_output
from errata.feedback.code_reading import first_difference, same_value
from errata.feedback.sandbox import run as sandbox
from errata.records import Verdict

UNSAFE = not sandbox.isolation()  # the tests' own programs are harmless

GAP = [("3\n1 4 6\n", "3\n"), ("2\n5 5\n", "0\n"), ("4\n-3 0 1 9\n", "8\n")]
WEAVE = [("[1, 2]\n[3, 4]", "[1, 3, 2, 4]"), ("[]\n[]", "[]"), ('["a"]\n[{"b": null}]', '["a", {"b": null}]')]


def judge(program, tests, function="", *, fenced=True, **args):
    verifier = CodeVerifier(unsafe_local=UNSAFE, workers=1, **args)
    completion = f"So:\n```python\n{program}\n```\nDone." if fenced else program
    encoded = json.dumps([{"input": i, "output": o} for i, o in tests])
    (verdict,) = verifier(prompts=["?"], completions=[completion], tests=[encoded], function=[function])
    return verdict


# -- reading --


@pytest.mark.parametrize(
    ("text", "code", "problem"),
    [
        ("```python\nprint(1)\n```", "print(1)\n", ""),
        ("a\n```py\n1\n```\nb\n```\nprint(2)\n```\nc", "print(2)\n", ""),
        ("```py\nprint(1)\n```\nOutput:\n```\n2\n```", "print(1)\n", ""),
        ("~~~py\nprint(1)\n~~~", "print(1)\n", ""),
        ("```py\r\nprint(1)\r\n```\r\n", "print(1)\n", ""),
        ("- so\n  ```py\n  if x:\n    y\n  ```", "if x:\n  y\n", ""),
        ("```py\nprint(1)``` done", "print(1)``` done\n", ""),
        ("```py\nprint(1)```", "print(1)\n", ""),
        ("```py\n1\n```\nUsage:\n```py\nprint(2)\n```", "1\n", ""),
        ("```python\n1\n```\nOutput:\n```text\n7\n```", "1\n", ""),
        ("```Python title=x\n1\n```", "1\n", ""),
        ("```python\ns = '```'\n```", "s = '```'\n", ""),
        ("print(1)", None, "there is no code block"),
        ("```python\nprint(1)", "print(1)\n", ""),
        ("```cpp\nint x;\n```", None, "there is no Python code block"),
        ("```python\n\n```", None, "the code block is empty"),
    ],
)
def test_the_last_python_block_is_the_program(text, code, problem):
    assert read_code(text) == (code, problem)


def test_without_a_program_nothing_is_run():
    verdict = judge("I cannot.", GAP, fenced=False)
    assert (verdict.score, verdict.kind) == (0.0, "format")
    assert verdict.feedback == (
        "No program could be read: there is no code block; put the whole program in one ```python block."
    )
    assert judge("<think>```python\n1\n```</think>none", GAP, fenced=False).kind == "format"


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 2\n", " 1 2 \r\n", True),
        ("1\n2", "1 2", False),
        ("0.5", "0.50", True),
        ("50000000000000000", "50000000000000001", False),
        ("0.1 7", "1e-1 7.0", True),
        ("yes", "Yes", False),
        ("", "\n\n", True),
        ("1", "", False),
        ("1 a", "1.0 a", True),
        ("1 a", "1.0  a", False),
        ("1000", "1_000", False),
    ],
)
def test_outputs_are_compared_as_the_benchmark_does(expected, got, same):
    assert same_output(expected, got) is same


@pytest.mark.parametrize(
    ("expected", "got", "tolerance", "same"),
    [
        ("0.333333333333", "0.333333", 1e-5, True),
        ("0.333333333333", "0.333333", 0.0, False),
        ("0.5", "0.51", 1e-5, False),
        ("2000000.5", "2000001.5", 1e-5, True),
        ("7", "7.000001", 1e-5, False),
        ("7.0", "7.000001", 1e-5, True),
    ],
)
def test_a_tolerance_is_for_numbers_that_are_not_whole(expected, got, tolerance, same):
    assert same_output(expected, got, tolerance) is same
    assert same_value(expected, got, tolerance) is same


def test_the_tolerance_is_an_option():
    assert judge("print(1 / 3)", [("", "0.33333")]).score == 1.0
    assert judge("print(1 / 3)", [("", "0.33333")], float_tolerance=0.0).score == 0.0
    with pytest.raises(ValueError, match="float_tolerance: must be from 0 to below 1, not 1"):
        CodeVerifier(float_tolerance=1, unsafe_local=True)


def test_the_first_difference_of_a_long_output():
    assert first_difference("1\n2\n3\n4\n5", "1\n2\n0\n4\n5") == "line 3: '3' was expected, '0' was printed"
    assert first_difference("1\n2\n3\n4\n5", "1\n2\n3\n4") == "5 lines were expected, 4 were printed"
    assert first_difference("1", "2") == ""
    feedback = judge("for i in range(100): print(i // 51)", [("", "0\n" * 100)]).feedback
    assert feedback.endswith("First difference:\nline 52: '0' was expected, '1' was printed")


# -- programs --


def test_a_right_program():
    program = "n = int(input())\na = list(map(int, input().split()))\nprint(max(b - a for a, b in pairwise(a)))"
    assert judge(program, GAP) == Verdict(1.0, info={"passed": 3, "tests": 3})


def test_wrong_outputs_are_shown_with_input_and_expected():
    verdict = judge("input()\na = [*map(int, input().split())]\nprint(max(a) - min(a))", GAP)
    assert (verdict.score, verdict.kind, verdict.leaks_answer) == (0.0, "tests", False)
    assert verdict.info == {"passed": 1, "tests": 3, "failed": "printed a wrong output"}
    assert verdict.feedback == (
        "Test 1 of 3: the program printed a wrong output.\n"
        "Input:\n3\n1 4 6\nExpected:\n3\nPrinted:\n5\n\n"
        "Test 3 of 3: the program printed a wrong output.\n"
        "Input:\n4\n-3 0 1 9\nExpected:\n8\nPrinted:\n12"
    )


def test_running_stops_at_the_last_failure_shown():
    verdict = judge("print(-1)", GAP, show=1)
    assert verdict.info["passed"] == 0
    assert "Test 1 of 3" in verdict.feedback
    assert "Test 2 of 3" not in verdict.feedback


def test_partial_scores_run_all_tests():
    program = "input()\na = [*map(int, input().split())]\nprint(max(a) - min(a) if len(a) < 4 else 8)"
    verdict = judge(program, GAP, partial=True)
    assert (verdict.score, verdict.info["passed"]) == (pytest.approx(2 / 3), 2)


CALL = "~" if sys.version_info >= (3, 13) else "^"
"""How a traceback marks what is called, before the marks of its arguments."""


def test_a_traceback_shows_the_programs_own_lines():
    verdict = judge("def f(n):\n    return 1 / (n - 3)\n\nprint(f(int(input())))", GAP[:1])
    assert verdict.feedback == (
        "Test 1 of 1: the program raised an error.\nInput:\n3\n1 4 6\nError:\nTraceback (most recent call last):\n"
        f'  File "program.py", line 4, in <module>\n    print(f(int(input())))\n          {CALL}^^^^^^^^^^^^^^\n'
        '  File "program.py", line 2, in f\n    return 1 / (n - 3)\n           ~~^~~~~~~~~\n'
        "ZeroDivisionError: division by zero"
    )


def test_the_same_error_is_shown_once():
    verdict = judge("print 3", GAP)
    assert verdict.feedback == (
        "Test 1 of 3: the program raised an error.\nInput:\n3\n1 4 6\nError:\n"
        '  File "program.py", line 1\n    print 3\n    ^^^^^^^\n'
        "SyntaxError: Missing parentheses in call to 'print'. Did you mean print(...)?"
    )


@pytest.mark.parametrize(
    ("program", "args", "what"),
    [
        ("while True: pass", {"timeout_s": 0.5}, "exceeded the time limit of 0.5 s"),
        ("x = [0] * 10**10", {"memory_mb": 300}, "exceeded the memory limit of 300 MB"),
        ("while True: print('x' * 10_000)", {}, "printed more than 8 MB"),
        ("import os; os.abort()", {}, "raised an error"),
        ("exit('gave up')", {}, "raised an error"),
    ],
)
def test_limits_and_ends(program, args, what):
    verdict = judge(program, GAP, **args)
    assert (verdict.score, verdict.info["failed"]) == (0.0, what)
    assert verdict.feedback.startswith(f"Test 1 of 3: the program {what}.\nInput:\n3\n1 4 6")


def test_a_program_may_exit_and_be_a_main_module():
    assert (
        judge("def main():\n    print(input())\n    exit()\nif __name__ == '__main__':\n    main()", [("7", "7")]).score
        == 1.0
    )


def test_feedback_keeps_to_its_budget():
    tests = [("\n".join(map(str, range(5000))), "no"), ("x" * 5000, "y" * 5000)]
    verdict = judge("import sys; print(sys.stdin.read())", tests, budget=600)
    assert len(verdict.feedback) <= 600
    assert "characters ...]" in verdict.feedback
    assert verdict.feedback.count("Test ") == 2


# -- functions --


@pytest.mark.parametrize(
    "program",
    [
        "class Solution:\n  def weave(self, a: List[int], b):\n    print('debug')\n    return [x for p in zip(a, b) for x in p]",
        "def weave(a, b):\n    return tuple(chain.from_iterable(zip(a, b)))",
        "class Helper: pass\nweave = lambda a, b: sum(map(list, zip(a, b)), [])\nif __name__ == '__main__': 1 / 0",
    ],
)
def test_a_right_function(program):
    assert judge(program, WEAVE, "weave") == Verdict(1.0, info={"passed": 3, "tests": 3})


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "def weave(a, b): return a + b",
            "Test 1 of 3: the program returned a wrong value.\n"
            "Call:\nweave([1, 2], [3, 4])\nExpected:\n[1, 3, 2, 4]\nReturned:\n[1, 2, 3, 4]",
        ),
        (
            "def weave(a, b): return {1}",
            "Test 1 of 3: the program returned a wrong value.\n"
            'Call:\nweave([1, 2], [3, 4])\nExpected:\n[1, 3, 2, 4]\nReturned:\n"{1}"',
        ),
        (
            "def wove(a, b): return a",
            "Test 1 of 3: the program raised an error.\n"
            "Call:\nweave([1, 2], [3, 4])\nError:\nNameError: the program defines no function weave",
        ),
        (
            "def weave(a, b): exit()",
            "Test 1 of 3: the program ended before its function returned.\nCall:\nweave([1, 2], [3, 4])",
        ),
    ],
)
def test_a_wrong_function(program, said):
    verdict = judge(program, WEAVE, "weave", show=1)
    assert (verdict.score, verdict.feedback) == (0.0, said)


def test_what_is_expected_is_not_in_the_sandbox():
    program = (
        "import os, sys, gc\ndef weave(a, b):\n"
        "    held = [o for o in gc.get_objects() if isinstance(o, (str, list)) and 'ZEBRA' in str(o)[:10**6]]\n"
        "    files = ''.join(open(f).read() for f in os.listdir('.'))\n"
        "    return 'Z' + 'EBRA' if 'Z' + 'EBRA-1' in files else 'not found'"
    )
    verdict = judge(program, [("[]\n[]", '"ZEBRA-1"')], "weave")
    assert 'Returned:\n"not found"' in verdict.feedback


def test_a_forged_value_has_to_be_right():
    program = "import sys\ndef weave(a, b):\n    print('\\n' + '0' * 16 + ':[1, 3, 2, 4]', flush=True)\n    return None"
    assert judge(program, WEAVE[:1], "weave").info["failed"] == "returned a wrong value"


# -- the verifier --


def test_many_completions_are_judged_in_order():
    verifier = CodeVerifier(unsafe_local=UNSAFE, workers=4)
    encoded = json.dumps([{"input": "", "output": "3"}])
    completions = [f"```python\nprint({i})\n```" for i in range(8)]
    verdicts = verifier(completions=completions, tests=[encoded] * 8)
    assert [v.score for v in verdicts] == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_wrong_settings_and_rows():
    with pytest.raises(ValueError, match="show must be at least 1 and budget at least 200, not 0 and 2000"):
        CodeVerifier(show=0, unsafe_local=True)
    with pytest.raises(ValueError, match="reads the column 'tests'"):
        CodeVerifier(unsafe_local=UNSAFE)(completions=["x"])
    with pytest.raises(ValueError, match="tests: row 0 of the batch has none, so that any program would pass"):
        judge("1", [])
    for tests, problem in [
        (None, "must be a list of tests"),
        (7, "must be a list"),
        ("[", "is not valid JSON"),
        ("[{}]", "must be a list"),
    ]:
        with pytest.raises(ValueError, match=f"tests: row 1 of the batch {problem}"):
            CodeVerifier(unsafe_local=True)(completions=["x", "x"], tests=['[{"input": "", "output": ""}]', tests])


def test_where_programs_cannot_be_isolated_it_says_so_before_the_run(monkeypatch):
    monkeypatch.setattr(sandbox, "_methods", list)
    sandbox._isolation.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"programs cannot be isolated here .* set unsafe_local: true"):
            CodeVerifier()
        assert CodeVerifier(unsafe_local=True).unsafe_local
    finally:
        sandbox._isolation.cache_clear()


def test_a_memoised_recursion_is_as_deep_as_the_programs_limit():
    """From Python 3.12 on its own lru_cache ends after some hundred or thousand levels."""
    source = (
        "from functools import cache, lru_cache\n\n"
        "@cache\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n\n"
        "@lru_cache(maxsize=2)\ndef h(a, b=1):\n    return a + b\n\n"
        "assert [h(1), h(1, b=2), h(2), h.cache_info().currsize] == [2, 3, 3, 2]\n"
        "print(f(int(input())), f.cache_info().misses)"
    )
    assert judge(source, [("10000", "10000 10001")]).score == 1.0
