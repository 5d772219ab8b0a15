"""A verifier in a process of its own may do to it whatever it likes: it costs rollouts, never the run."""

import inspect
import os
import time
from dataclasses import dataclass, field

import pytest

from errata.feedback import as_verdicts, judge
from errata.feedback.sandbox.verifier_process import SHOWN_BYTES, ProcessVerifier, is_own, spec_of

SOURCE = '''
import asyncio, ctypes, os, random, re, signal, sys, time

DEEDS = {
    "exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "close": lambda: os.closerange(0, 1024),
    "sys.exit": lambda: sys.exit(0),
    "raise": lambda: 1 / 0,
    "hang": lambda: time.sleep(1000),
    "hang in C": lambda: re.match("(a+)+$", "a" * 64 + "b"),
    "flood": lambda: [os.write(1, b"x" * 65536) for _ in iter(int, 1)],
    "recurse": lambda: DEEDS["recurse"](),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}

def deed(completions, **columns):
    """Scores 1, after doing what a completion says."""
    for text in completions:
        DEEDS.get(text, int)()
    return [1.0] * len(completions)

def harmless(completions, hint=None, *, answer, **columns):
    sys.stdout.close()
    return [{"score": 0.0, "feedback": text * 10**6} for text in completions]

def draws(completions, **columns):
    return [random.random() for _ in completions]

async def slowly(completions, log_extra, log_metric, trainer_state, **columns):
    await asyncio.sleep(0)
    log_extra("length", [len(text) for text in completions])
    log_metric("step", trainer_state.global_step)
    return ([0.5 for _ in completions] for _ in "x").__next__()

def unusable(completions, **columns):
    return "abc"

def endless(completions, **columns):
    return iter(int, 1)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("verifiers") / "deeds.py"
    path.write_text(SOURCE)
    return path


def call(verifier, completions, *, timeout_s=20.0, **columns):
    return judge(
        verifier, prompts=["?"] * len(completions), completions=completions, columns=columns, timeout_s=timeout_s
    )


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("exit", "its process ended with exit code 0"),
        ("kill", "its process was killed by SIGKILL"),
        ("crash", "its process was killed by SIGSEGV"),
        ("close", "its process ended with exit code 1"),
        ("sys.exit", "SystemExit: 0 (deeds.py:"),
        ("raise", "ZeroDivisionError: division by zero (deeds.py:"),
        ("hang", "took longer than 1.5 s; its process was killed"),
        ("hang in C", "took longer than 1.5 s; its process was killed"),
        ("flood", "took longer than 1.5 s; its process was killed"),
        ("recurse", "RecursionError: maximum recursion depth exceeded"),
        ("stop", "took longer than 1.5 s; its process was killed"),
    ],
)
def test_a_deed_costs_its_own_rollout(file, deed, said, capsys):
    verifier = ProcessVerifier(f"{file}:deed")
    right, wrong, also_right = call(verifier, ["a", deed, "b"], timeout_s=1.5)
    assert (right.score, also_right.score) == (1.0, 1.0)
    assert (wrong.score, wrong.kind, wrong.info["verifier"]) == (None, "error", "deed")
    assert wrong.info["error"].startswith(said)
    assert len(capsys.readouterr().err) < 5 * SHOWN_BYTES
    verifier.close()


def test_its_processes_are_gone_when_it_is_closed(file):
    verifier = ProcessVerifier(f"{file}:deed")
    pid = verifier._process.pid
    verifier.close()
    assert not os.path.exists(f"/proc/{pid}")
    assert [v.score for v in call(verifier, ["a"])] == [1.0]  # the next call starts another
    verifier.close()


def test_long_feedback_is_cut_and_standard_output_may_be_closed(file):
    verifier = ProcessVerifier(f"{file}:harmless")
    for _ in range(2):
        (verdict,) = call(verifier, ["ab"], answer=["x"])
        assert (verdict.score, len(verdict.feedback)) == (0.0, 20_007)
    assert str(inspect.signature(verifier)) == "(completions, hint=None, *, answer, **columns)"
    assert verifier.__name__ == "harmless"
    verifier.close()


def test_what_is_drawn_depends_on_the_call_alone(file):
    one, other = ProcessVerifier(f"{file}:draws"), ProcessVerifier(f"{file}:draws")
    first = [v.score for v in call(one, ["a", "b"])]
    assert [v.score for v in call(one, ["a", "c"])] != first
    assert [v.score for v in call(other, ["a", "b"])] == first
    assert first[0] != first[1]
    one.close()
    other.close()


@dataclass
class TrainerState:
    global_step: int = 7
    log_history: list = field(default_factory=lambda: [object] * 1000)


def test_logs_and_state_pass_through_and_coroutines_are_awaited(file):
    verifier, logged = ProcessVerifier(f"{file}:slowly"), []
    verdicts = call(
        verifier,
        ["a", "bcd"],
        trainer_state=TrainerState(),
        log_extra=lambda column, values: logged.append((column, values)),
        log_metric=lambda name, value: logged.append((name, value)),
    )
    assert [v.score for v in verdicts] == [0.5, 0.5]
    assert logged == [("length", [1, 3]), ("step", 7.0)]
    verifier.close()


def test_errors_of_the_program_are_raised(file):
    with pytest.raises(ValueError, match="verifier 'unusable' returned 'abc'"):
        call(ProcessVerifier(f"{file}:unusable"), ["a"])
    with pytest.raises(ValueError, match="verifier 'endless' returned 2 verdicts for 1 completions"):
        call(ProcessVerifier(f"{file}:endless"), ["a"])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; os._exit(0)", "does not import: its process ended with exit code 0"),
        ("import sys; sys.exit(0)", "does not import: SystemExit: 0"),
        ("raise KeyboardInterrupt", "does not import: KeyboardInterrupt"),
        ("v = 3", "is a int, not a function"),
    ],
)
def test_a_file_that_does_not_import_is_named(tmp_path, source, said):
    (tmp_path / "v.py").write_text(source)
    with pytest.raises(ValueError, match=said):
        ProcessVerifier(f"{tmp_path / 'v.py'}:v")


def test_which_functions_another_process_can_import():
    def closure():
        pass

    assert spec_of(as_verdicts) == "errata.feedback.custom:as_verdicts"
    assert is_own("errata.feedback.custom:as_verdicts")
    assert is_own("trl.rewards:x")
    assert not is_own("mine.py:x")
    for other in (closure, lambda: 0, time.sleep(0), TrainerState().__init__):
        assert spec_of(other) is None


# -- the same in this process: what a verdict may be ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "score", "error"),
    [
        (10**400, None, "the score is inf"),
        (-(10**400), None, "the score is inf"),
        (10**30, None, "the score is 1e+30"),
        (10**15, 1e15, None),
    ],
)
def test_scores_that_overflow_are_failures(value, score, error):
    (verdict,) = as_verdicts([value], n=1, name="v")
    assert (verdict.score, verdict.info.get("error")) == (score, error)


def test_two_dimensions_are_refused():
    import torch

    with pytest.raises(ValueError, match="completion 0: the score must be a number"):
        as_verdicts(torch.zeros(2, 2), n=2, name="v")


def test_info_that_cannot_be_written_is_left_out():
    cycle = {}
    cycle["a"] = cycle
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for info in (cycle, deep, {"a": "x" * 200_000}):
        (verdict,) = as_verdicts([{"score": 0.0, "info": info}], n=1, name="v")
        assert list(verdict.info) == ["left_out"]
    while deep:  # piece by piece: freeing it at once would recurse
        deep = deep["a"]


def test_half_characters_are_replaced():
    (verdict,) = as_verdicts([{"score": 0.0, "feedback": "a\ud800b😀é"}], n=1, name="v")
    assert verdict.feedback == "a�b😀é"
