"""What a report holds, without a browser: it is whole, small, and no text in it can become anything but text."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.reports.html import PAGE_LIMIT, page, write_report
from errata.reports.packing import HEAD, MAX_TEXT, TAIL, attempts, embedded, pack, readable
from errata.reports.rundir import RunDirectory
from errata.reports.runs import load


def data_of(html):
    return json.loads(re.search(rb'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_a_run_becomes_one_file_in_its_directory(make, tmp_path):
    run = make(tmp_path / "demo", steps=20, every=10)
    file = write_report([run])
    assert file == run / "report.html"
    html = file.read_bytes()
    assert b"<title>demo \xc2\xb7 errata</title>" in html
    assert len(data_of(html)["attempts"]) == 80
    # Nothing is fetched: no element of the page names an address.
    assert not re.search(rb"<[^>]*(src|href)=[\"']?(https?:)?//", html)


def test_the_policy_names_exactly_the_pages_scripts(make, tmp_path):
    html = write_report([make(tmp_path / "demo", steps=4, every=2)]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.count("sha256-") == len(re.findall(r"<script>", html))
    assert "script-src 'unsafe" not in policy


@given(st.text())
def test_embedded_text_cannot_leave_its_element(text):
    raw = embedded([text, "</script><script>", "<!--", "\u2028"])
    assert b"<" not in raw
    assert json.loads(raw)[0] == text


def test_half_a_surrogate_pair_is_embedded():
    assert json.loads(embedded("a\ud83d")) == "a\ud83d"


def test_names_and_settings_are_escaped(make, tmp_path):
    html = write_report([make(tmp_path / "demo", steps=2, every=2, task="<script>alert(1)</script>")]).read_text()
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_page_stays_below_its_limit_whatever_the_runs_hold(make, tmp_path):
    run = make(tmp_path / "long", steps=10, every=5, rollouts=False)
    directory = RunDirectory(run)
    words = ["<&>word"] * 4096
    for step in range(1, 61):
        directory.write(
            "rollouts",
            {
                "step": step, "problem_id": "p", "prompt": "x" * 20_000, "completion": "".join(words), "tokens": words,
                "generated": [1] * 4096, "reward": 0.0, "kind": "", "feedback": "", "pass_rate": 0.5, "context": {},
                "signals": {f"signal {n}": [-0.123 * i for i in range(4096)] for n in range(4)},
            },
        )  # fmt: skip
    html = page(load([run]))
    assert len(html) < PAGE_LIMIT
    found = data_of(html)
    assert found["recorded"] == 60
    kept = [row["step"] for row in found["attempts"]]
    assert 10 < len(kept) < 60
    # The beginning and the end are there, and the rest is spread between.
    assert (kept[0], kept[-1]) == (1, 60)
    assert max(b - a for a, b in pairwise(kept)) <= 10
    assert len(found["attempts"][0]["tokens"]) == HEAD + TAIL
    assert found["attempts"][0]["gap"] == [HEAD, 4096 - HEAD - TAIL]


def test_several_runs_share_the_room(runs):
    read = load(runs.values())
    packed, recorded = attempts(read, 400_000)
    assert recorded == 6 * 160
    assert {row["run"] for row in packed} == set(range(6))
    assert len(embedded(packed)) <= 400_000 + 2


ROW = {
    "step": 3, "problem_id": "p", "prompt": [{"role": "user", "content": "7+3=?"}], "completion": "ab",
    "tokens": ["a", "b", "<|end|>"], "generated": [1, 0, 1], "reward": 1.0, "kind": "", "feedback": "", "pass_rate": 0.25,
    "context": {"kind": "sibling", "why": "rollout 3", "prompt": [{"role": "user", "content": "7+3=?\nsolved:0"}]},
    "signals": {"student_logp": [-0.12345, None, -2.0], "sd_weight": [1.0, 1.0, 1.0]},
    "alternatives": [[["a", 0.91234], ["b", 0.05], ["c", 0.001]], [["b", 0.004]], [["x", 1.0]]],
}  # fmt: skip


def test_a_row_is_packed_to_what_is_shown():
    packed = pack(ROW)
    assert packed["signals"] == {"student_logp": [-0.123, None, -2], "sd_weight": 1}
    assert packed["given"] == [1]
    assert packed["alternatives"] == [[["a", 0.912], ["b", 0.05]], [["b", 0.004]], [["x", 1.0]]]
    assert packed["shown"] == [["user", "7+3=?", "\nsolved:0", ""]]
    assert packed["context"] == {"kind": "sibling", "why": "rollout 3"}


def test_a_pass_rate_that_nobody_kept_is_the_groups():
    row = ROW | {"pass_rate": 0.5, "group_rate": 0.125}
    assert pack(row)["rate"] == 0.5
    assert pack(row, ledger=False)["rate"] == 0.125
    assert pack(ROW, ledger=False)["rate"] is None


@pytest.mark.parametrize(
    ("reward", "threshold", "solved"),
    [(0.5, 0.5, True), (0.5, 1.0, False), (1.0, 1.0, True), (0.0, 0.5, False), (1.0, 2.0, False), (None, 0.0, False)],
)
def test_a_packed_row_is_solved_from_the_threshold_on(reward, threshold, solved):
    assert pack(ROW | {"reward": reward}, threshold=threshold)["solved"] is solved


@pytest.mark.parametrize(
    ("settings", "solved"), [({"success_threshold": 0.5}, True), ({"success_threshold": 1.0}, False), ({}, False)]
)
def test_the_page_reads_the_runs_success_threshold(tmp_path, settings, solved):
    directory = RunDirectory(tmp_path / "partial")
    directory.open({"method": "distil", "method_settings": settings})
    directory.write("rollouts", ROW | {"reward": 0.5})
    (row,) = data_of(page(load([directory.path])))["attempts"]
    assert row["solved"] is solved


def test_turns_feedback_on_them_and_siblings_are_packed():
    turns = [
        {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]},
        {"role": "tool", "name": "add", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    other = {
        "completion": "x" * 9000,
        "length": 12,
        "reward": 0.5,
        "kind": "trace",
        "feedback": "no",
        "turns": turns[2:],
    }
    packed = pack(ROW | {"turns": turns, "turn_feedback": ["late", ""], "siblings": [other]}, threshold=0.5)
    assert packed["turns"] == [["assistant", "", ["add"]], ["tool", "add", []], ["assistant", "", []]]
    assert packed["turn_feedback"] == ["late", ""]
    (sibling,) = packed["siblings"]
    assert MAX_TEXT <= len(sibling["tokens"][0]) < MAX_TEXT + 100
    assert (sibling["solved"], sibling["length"], sibling["turns"]) == (True, 12, [["assistant", "", []]])


def test_signals_of_other_peoples_tokens_do_not_count():
    packed = pack(ROW | {"signals": {"rl_weight": [0.3, 0.0, 0.3]}, "generated": [1, 0, 1]})
    assert packed["signals"] == {"rl_weight": 0.3}


def test_no_alternatives_are_kept_where_the_teacher_is_sure_of_the_token():
    packed = pack(ROW | {"alternatives": [[["a", 0.97], ["b", 0.02]], [["a", 0.97]], [["<|end|>", 0.9], ["b", 0.1]]]})
    assert packed["alternatives"] == [0, [["a", 0.97]], [["<|end|>", 0.9], ["b", 0.1]]]


def test_evaluations_have_their_share_of_the_room(make, tmp_path):
    run = make(tmp_path / "run", steps=4, every=2)
    attempts_ = [
        {"completion": f"{n}", "length": 3, "reward": float(n == 1), "kind": "", "feedback": ""} for n in range(3)
    ]
    for step in (0, 2, 4):
        row = {"step": step, "problem_id": "p", "prompt": "1+1=?", "attempts": attempts_}
        RunDirectory(run).write("eval_rollouts", row)
    found = data_of(page(load([run])))["attempts"]
    tested = [row for row in found if row.get("split") == "evaluation"]
    assert [row["step"] for row in tested] == [0, 2, 4]
    assert [row["tokens"] for row in (tested[0], *tested[0]["siblings"])] == [["0"], ["1"], ["2"]]
    assert [row["solved"] for row in (tested[0], *tested[0]["siblings"])] == [False, True, False]
    assert tested[0]["rate"] == pytest.approx(1 / 3)


def test_a_row_of_a_method_without_a_teacher():
    row = {k: v for k, v in ROW.items() if k not in ("alternatives", "context", "signals", "generated")}
    packed = pack(row)
    assert packed["signals"] == {}
    assert packed["context"] == {}
    assert not {"shown", "alternatives", "given"} & set(packed)


def test_an_addition_in_the_middle_of_the_prompt_is_found():
    row = ROW | {
        "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Q: 1+1? Answer:"}],
        "context": {
            "kind": "feedback",
            "prompt": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "Q: 1+1? Hint: 2. Answer:"},
            ],
        },
    }
    assert pack(row)["shown"] == [["user", "Q: 1+1? ", "Hint: 2. ", "Answer:"]]


@pytest.mark.parametrize(
    ("tokens", "completion", "found"),
    [
        (["I ", "\ufffd", "\ufffd", " you"], "I 😀 you", ["I ", "😀", "", " you"]),
        (["\ufffd", "\ufffd", "<|end|>"], "é", ["é", "", "<|end|>"]),
        (["a", "b"], "ab", ["a", "b"]),
        (["\ufffd"], "", ["\ufffd"]),
    ],
)
def test_bytes_of_one_character_are_shown_whole(tokens, completion, found):
    assert readable(tokens, completion) == found


def test_a_run_that_has_only_begun(tmp_path):
    run = RunDirectory(tmp_path / "new")
    run.open({"method": "grpo"})
    html = page(load([run.path]))
    assert data_of(html) == {
        "sections": [], "clocks": {"grpo": {"step": [0], "tokens": [0], "minutes": [0]}},
        "runs": [{"name": "new", "divergence": None}], "attempts": [], "recorded": 0,
    }  # fmt: skip


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is it a run directory"):
        write_report([tmp_path])


def test_several_runs_are_compared(runs, tmp_path):
    html = write_report(list(runs.values()), tmp_path / "all.html").read_text()
    assert "Each: 2 seeds, 40 steps, 5120 rollouts." in html
    assert re.search(r'<td class="best">[\d.]+ ±[\d.]+ \*</td>', html)
