"""A verifier's failures cost rollouts, never the run."""

import asyncio
import threading
import time

import pytest

from errata.feedback import judge
from errata.records import Verdict


def call(verifier, completions, *, timeout_s=20.0, **columns):
    return judge(
        verifier,
        prompts=["?"] * len(completions),
        completions=completions,
        completion_ids=[[1]] * len(completions),
        columns=columns,
        timeout_s=timeout_s,
    )


def alive(name):
    return [t for t in threading.enumerate() if t.name == f"verifier {name}"]


def gone(name, within=3.0):
    end = time.monotonic() + within
    while alive(name) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(name)


def test_trls_own_reward_functions_run_unchanged():
    from trl.rewards import accuracy_reward, think_format_reward

    chats = [
        [{"role": "assistant", "content": c}] for c in (r"\boxed{\frac{1}{3}}", r"\boxed{3}", "<think>\nx\n</think>\ny")
    ]
    assert call(accuracy_reward, chats, solution=[r"\frac{1}{3}", "$4$", "$4$"]) == [
        Verdict(1.0),
        Verdict(0.0),
        Verdict(0.0),
    ]
    assert call(think_format_reward, chats) == [Verdict(0.0), Verdict(0.0), Verdict(1.0)]


@pytest.mark.parametrize("timeout_s", [20.0, None])
def test_a_verifier_gets_all_that_trl_gives(timeout_s):
    seen = {}

    def look(prompts, completions, completion_ids, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [0.0] * len(prompts)

    state, environments = object(), [object(), object()]
    call(look, ["a", "b"], timeout_s=timeout_s, answer=["x", "y"], trainer_state=state, environments=environments)
    assert seen["prompts"] == ["?", "?"]
    assert seen["completions"] == ["a", "b"]
    assert seen["completion_ids"] == [[1], [1]]
    assert seen["answer"] == ["x", "y"]
    assert seen["environments"] == environments
    assert seen["trainer_state"] is state


@pytest.mark.parametrize("timeout_s", [20.0, None])
def test_only_the_rollout_it_raises_on_is_lost(timeout_s):
    def divide(completions, divisor, **_):
        return [6.0 / d for d in divisor]

    right, wrong, also_right = call(divide, ["a", "b", "c"], timeout_s=timeout_s, divisor=[2, 0, 3])
    assert (right, also_right) == (Verdict(3.0), Verdict(2.0))
    assert (wrong.score, wrong.kind, wrong.info["verifier"]) == (None, "error", "divide")
    assert wrong.info["error"].startswith("ZeroDivisionError: float division by zero (test_judge.py:")


def test_an_exit_is_a_failure_too():
    def leave(completions, **_):
        raise SystemExit(3)

    (verdict,) = call(leave, ["a"])
    assert (verdict.score, verdict.kind) == (None, "error")
    assert verdict.info["error"].startswith("SystemExit: 3")


def test_a_verifier_that_hangs_on_one_rollout_loses_that_one_and_its_threads_end():
    def hang(completions, **_):
        for c in completions:
            while c == "forever":
                pass
        return [1.0] * len(completions)

    start = time.monotonic()
    verdicts = call(hang, ["a", "forever", "b"], timeout_s=0.3)
    assert time.monotonic() - start < 3.0
    assert [v.score for v in verdicts] == [1.0, None, 1.0]
    assert verdicts[1].info["error"] == "took longer than 0.3 s"
    assert gone("hang")


def test_one_that_hangs_on_everything_takes_no_more_than_a_few_limits():
    def hang_always(completions, **_):
        while True:
            pass

    start = time.monotonic()
    verdicts = call(hang_always, ["x"] * 40, timeout_s=0.1)
    assert time.monotonic() - start < 5.0
    assert {v.score for v in verdicts} == {None}
    assert verdicts[0].info["error"] == "took longer than 0.1 s"
    assert verdicts[-1].info["error"] == "not judged: other rollouts of the batch used up the verifier's time"
    assert gone("hang_always")


def test_one_that_cannot_be_stopped_is_left_behind():
    release = threading.Event()

    def deaf(completions, **_):
        release.wait()
        return [1.0]

    (verdict,) = call(deaf, ["a"], timeout_s=0.2)
    assert verdict.info["error"] == "took longer than 0.2 s"
    assert alive("deaf")
    release.set()
    assert gone("deaf")


def test_coroutines_are_awaited_on_one_loop():
    loops = []

    async def slow(completions, **_):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return [Verdict(1.0, "fine")] * len(completions)

    for _ in range(2):
        assert call(slow, ["a", "b"]) == [Verdict(1.0, "fine")] * 2
    assert loops[0] is loops[1]


@pytest.mark.parametrize("blocking", [False, True])
def test_a_coroutine_that_hangs_costs_its_rollout(blocking):
    release = threading.Event()

    async def hang(completions, **_):
        if "forever" in completions and blocking:
            release.wait()
        elif "forever" in completions:
            await asyncio.sleep(60)
        return [1.0] * len(completions)

    verdicts = call(hang, ["a", "forever"], timeout_s=0.2)
    release.set()
    assert [v.score for v in verdicts] == [1.0, None]
    assert verdicts[1].info["error"] == "took longer than 0.2 s"


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError])
def test_a_coroutine_that_raises_costs_its_rollout(kind):
    async def check(completions, **_):
        await asyncio.sleep(0)
        if "bad" in completions:
            raise kind("the service is down")
        return [1.0] * len(completions)

    verdicts = call(check, ["a", "bad"])
    assert verdicts[0] == Verdict(1.0)
    assert verdicts[1].info["error"].startswith(f"{kind.__name__}: the service is down")


def test_returning_the_wrong_thing_is_an_error_of_the_program():
    def half(completions, **_):
        return [1.0] * (len(completions) // 2)

    with pytest.raises(ValueError, match="verifier 'half' returned 1 verdicts for 2 completions"):
        call(half, ["a", "b"])
    with pytest.raises(ValueError, match="completion_ids: 1 for 2 completions"):
        judge(half, prompts=["?", "?"], completions=["a", "b"], completion_ids=[[1]], columns={}, timeout_s=1.0)


def test_a_verifier_for_the_main_thread_says_how():
    import signal

    def alarmed(completions, **_):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return [1.0]

    (refused,) = call(alarmed, ["a"], timeout_s=5.0)
    assert "set its time limit to none" in refused.info["error"]
    assert call(alarmed, ["a"], timeout_s=None) == [Verdict(1.0)]


def test_a_verifier_that_limits_its_own_time_has_no_other_limit():
    def slow(completions, **_):
        time.sleep(0.3)
        return [1.0] * len(completions)

    assert call(slow, ["a"], timeout_s=0.1)[0].score is None
    slow.limits_own_time = True
    assert call(slow, ["a"], timeout_s=0.1) == [Verdict(1.0)]


def test_logged_columns_stay_complete_when_a_rollout_is_lost():
    extra, metrics = {}, {}

    def log(completions, number, log_extra, log_metric, **_):
        log_extra("shown", completions)
        log_metric("mean", sum(number) / len(number))
        return [12.0 / x for x in number]

    def run(number):
        extra.clear()
        metrics.clear()
        return call(
            log,
            ["a", "b", "c"],
            number=number,
            log_extra=lambda column, values: extra.setdefault(column, []).extend(values),
            log_metric=lambda name, value: metrics.setdefault(name, []).append(value),
        )

    run([1, 2, 3])
    assert (extra, metrics) == ({"shown": ["a", "b", "c"]}, {"mean": [2.0]})
    assert [v.score for v in run([1, 0, 3])] == [12.0, None, 4.0]
    assert (extra, metrics) == ({"shown": ["a", None, "c"]}, {"mean": [2.0]})  # of the two calls that count: (1+3)/2
