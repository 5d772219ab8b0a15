"""The report of long answers in groups with tools and several seeds, as a reader uses it in headless Chromium."""

import json
import re

import pytest
from tests.reports.long_run import GROUP, TRACEBACK, TURN, make_long_run
from tests.reports.test_html_browser import Page, browser, chosen_token, pytestmark  # noqa: F401

from errata.reports.html import write_report
from errata.reports.rundir import RunDirectory
from errata.reports.runs import PLAN

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A comparison of two methods with two seeds, with tuning trials; one run's rollouts are long."""
    folder = tmp_path_factory.mktemp("long") / "compared"
    make_long_run(folder / "distil-0", steps=8)
    make_long_run(folder / "distil-1", steps=8, seed=1, tokens=400)
    for number, commit in ((0, "a" * 40), (1, "b" * 40)):
        run = RunDirectory(folder / f"distil-{number}")
        env = json.loads((run.path / "env.json").read_text())
        (run.path / "env.json").write_text(json.dumps({**env, "git": {"commit": commit, "changed": True}}))
        (run.path / "code.patch").write_text("@@ -1 +1 @@\n-margin = 1\n+margin = 2\n")
    tried = [{"learning_rate": 1e-5, "avg": 0.5}, {"learning_rate": 3e-5, "avg": 0.25}]
    plan = {
        "cells": [{"path": f"distil-{n}", "label": "distil", "seed": n} for n in range(2)],
        "tuning": {"distil": {"learning_rate": 1e-5, "trials": tried}},
    }
    (folder / PLAN).write_text(json.dumps(plan))
    return {"one": write_report([folder / "distil-0"], folder / "one.html"), "both": write_report([folder])}


def shades(page, selector=".token"):
    return page.page.eval_on_selector_all(
        selector, "tokens => tokens.map(t => Number(t.style.getPropertyValue('--much')))"
    )


def wrong(page):
    """Open an attempt that is wrong and has its tokens' signals."""
    return page.page.evaluate("probes.openWrong()")


def test_feedback_and_context_come_first_and_stay_folded(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        wrong(page)
        parts = [".part.problem", ".part.feedback", ".part.context", ".tokens"]
        order = [box["top"] for box in page.page.evaluate("probes.boxes", parts)]
        assert order == sorted(order)
        assert "AssertionError: intervals that touch are merged" in page.text(".part.feedback .said")
        assert "Your attempt was tested" in page.text(".part.context mark")
        page.page.click(".part.feedback summary")
        assert not page.page.locator(".part.feedback .said").is_visible()
        page.page.keyboard.press("n")
        page.page.keyboard.press("p")
        assert page.page.locator(".part.feedback").get_attribute("open") is None
        assert page.page.locator(".part.context").get_attribute("open") is not None


def test_a_key_jumps_to_the_next_token_of_high_disagreement(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        page.page.keyboard.press("d")  # a token in one key, from wherever the page was opened
        assert page.page.evaluate("document.activeElement.classList.contains('token')")
        seen = [chosen_token(page)]
        for _ in range(3):
            page.page.keyboard.press("d")
            seen.append(chosen_token(page))
            assert page.page.locator(".token.chosen").is_visible()
        assert seen == sorted(set(seen))
        opened = page.page.evaluate(
            "[...document.querySelectorAll('.list li')].findIndex(i => i.ariaSelected === 'true')"
        )
        signals = page.page.evaluate(f"errata.attempts.rows[{opened}].signals")
        sizes = [signals["divergence"][t] - signals["teacher_entropy"][t] for t in seen]
        assert all(size > 0.5 for size in sizes)  # noise is below 0.15, the slips are 1.2, 3.5 and 60
        page.page.keyboard.press("Shift+D")
        assert chosen_token(page) == seen[-2]
        page.page.click("#jump")
        assert chosen_token(page) == seen[-1]


def test_the_strip_lies_under_the_text_with_a_scale(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        wrong(page)
        parts = [".tokens", ".under", ".strip", ".tokens .flow"]
        show = "selector => document.querySelector(selector).scrollIntoView({block: 'center', behavior: 'instant'})"
        page.page.evaluate(show, ".tokens .turn")
        text, under, strip, flow = page.page.evaluate("probes.boxes", parts)
        assert under["bottom"] == pytest.approx(page.page.viewport_size["height"], abs=1)  # at the window's edge
        page.page.evaluate(show, ".keys")
        text, under, strip, flow = page.page.evaluate("probes.boxes", parts)
        assert under["top"] == pytest.approx(text["bottom"], abs=1)
        assert abs(strip["left"] - flow["left"]) < 2
        assert abs(strip["right"] - flow["right"]) < 2
        high, low = page.page.locator(".axis span").all_inner_texts()
        assert (float(high) > 1, low) == (True, "0")
        assert page.page.locator(".ticks span").all_inner_texts()[:2] == ["token 1", "500"]
        # And each token carries its own bar, on the same scale: .34 of a letter high at the scale's end.
        bars = page.page.eval_on_selector_all(
            ".token.mark", "tokens => tokens.map(t => parseFloat(getComputedStyle(t).backgroundSize.split(' ')[1]))"
        )
        assert max(bars) == pytest.approx(0.34 * 16, rel=0.01)
        assert 0 <= min(bars) < 0.2
        # A click on the strip leads to the token at that place.
        page.page.locator(".strip").click(position={"x": strip["width"] * 0.25, "y": 20})
        count = page.page.evaluate("document.querySelector('.strip').viewBox.baseVal.width")
        assert chosen_token(page) == pytest.approx(count / 4, abs=5)


def test_one_outlier_does_not_fade_the_rest_and_the_scale_can_be_shared(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        wrong(page)
        own = shades(page)
        assert sum(shade > 0.9 for shade in own) > 5  # the outlier of 60 nats is one of them
        page.page.check("input[name=scale][value=all]", force=True)
        assert shades(page) != own


def test_tool_output_is_text_and_turns_are_apart(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        wrong(page)
        assert page.text(".turn.given .output") == TRACEBACK
        assert page.page.locator(".turn.given .token").count() == 0
        assert page.page.locator(".turn > .role").all_inner_texts() == [
            "Turn 1 · calls run_tests",
            "tool output · run_tests",
            "The answer",
        ]
        assert page.text(".call").startswith("<tool_call>")
        assert page.text(".call").endswith("</tool_call>")
        assert page.text(".turn:first-child .note .said") == TURN
        assert page.page.locator(".note").count() == 1
        # The arrow keys step over what the tool said.
        last = page.page.locator(".turn.own").first.locator(".token").last
        last.click()
        here = chosen_token(page)
        page.page.keyboard.press("ArrowRight")
        after = chosen_token(page)
        assert after - here > 50
        assert page.page.locator(".turn.answer .token").first.get_attribute("data-t") == str(after)


def test_axes_are_named_begin_at_zero_and_tell_their_ticks_apart(browser, long):  # noqa: F811
    with Page(browser, long["both"]) as page:
        page.page.wait_for_selector("#charts .plot canvas")
        drawn = page.page.evaluate("window.drawn")
        assert {"optimizer steps", "tokens", "nats", "per cent", "reward"} <= set(drawn)
        # Ticks of the length: from 0, although all values are near 1,000 (the mean of both seeds).
        page.page.evaluate("window.drawn = []")
        page.page.set_viewport_size({"width": 1000, "height": 900})
        page.until("window.drawn.length > 50")
        for texts in ticks(page.page.evaluate("window.drawn"), "tokens"):
            assert texts[0] == "0"
        for name in ("tokens", "nats", "reward"):
            for texts in ticks(page.page.evaluate("window.drawn"), name):
                assert len(set(texts)) == len(texts)


def ticks(drawn, name):
    """The vertical ticks of each chart whose vertical axis has this name, as far as they stand in a row after it."""
    for start in (i for i, text in enumerate(drawn) if text == name):
        found = []
        for text in drawn[start + 1 :]:
            if not re.fullmatch(r"[−\d.]+", text):
                break
            found.append(text)
        if found:
            yield found


def test_the_step_stands_at_the_cursor(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        plot = page.page.locator("#charts .plot").first
        plot.focus()
        page.page.keyboard.press("Home")
        assert page.text("#charts .where") == "step 1"
        page.page.keyboard.press("ArrowRight")
        assert page.text("#charts .where") == "step 2"


def test_charts_can_be_log_smooth_and_one_line_per_seed(browser, long):  # noqa: F811
    with Page(browser, long["both"]) as page:
        legend = page.page.locator("#charts .legend").first
        assert "seed" not in legend.inner_text()
        page.page.check("input[name=lines-charts][value=seeds]", force=True)
        assert [text.split()[:2] for text in legend.locator("li").all_inner_texts()][:2] == [
            ["seed", "0"],
            ["seed", "1"],
        ]
        page.page.evaluate("window.drawn = []")
        page.page.check("input[name=scale-charts][value=log]", force=True)
        page.until("window.drawn.includes('0.01') || window.drawn.includes('0.1')")
        assert page.page.is_checked("input[name=scale-learning][value=log]")
        assert "Linear: it has values of 0 or below." in page.page.locator("#charts").inner_text()  # the gap


def test_smoothing_changes_what_is_drawn(browser, tmp_path, make):  # noqa: F811
    run = make(tmp_path / "run", steps=60)
    with Page(browser, write_report([run])) as page:
        plot = page.page.locator("#charts .plot").first
        numbers = {}
        for smoothing in ("none", "usual", "strong"):
            page.page.check(f"input[name=smooth-charts][value={smoothing}]", force=True)
            plot.focus()
            page.page.keyboard.press("Home")
            numbers[smoothing] = page.text("#charts .legend b")
        rewards = [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        # At the first step: the value itself, the mean of two (of three around it), of six (of eleven).
        for smoothing, n in (("none", 1), ("usual", 2), ("strong", 6)):
            assert float(numbers[smoothing]) == pytest.approx(sum(rewards[:n]) / n, rel=0.01)


def test_a_whole_group_stands_side_by_side(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        wrong(page)
        page.page.keyboard.press("g")
        columns = page.page.locator(".column")
        assert columns.count() == GROUP
        verdicts = [text.split()[0] for text in page.page.locator(".column h4").all_inner_texts()]
        assert verdicts == sorted(verdicts)  # right before wrong
        assert max(shades(page, ".column .tint")) == 1
        assert (
            len({box["top"] for box in (c.bounding_box() | {"top": c.bounding_box()["y"]} for c in columns.all())}) == 1
        )
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        columns.nth(3).locator("button").click()
        assert columns.count() == 0
        page.page.keyboard.press("g")
        page.page.keyboard.press("g")
        assert page.page.locator(".tokens").count() == 1


def test_attempts_of_evaluations_are_there(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        page.page.select_option("#filter-split", "evaluation")
        items = page.page.eval_on_selector_all(".list li", "items => items.map(item => item.textContent)")
        assert len(items) == 5 * GROUP
        assert all("evaluation" in item for item in items)
        assert "step 0, evaluation" in page.text(".headline")
        assert "merge/test/0" in page.text(".headline")
        page.page.keyboard.press("g")
        assert page.page.locator(".column").count() == GROUP


def test_attempts_can_be_sorted_by_any_signal(browser, long):  # noqa: F811
    with Page(browser, long["one"]) as page:
        options = page.page.locator("#order option").all_inner_texts()
        for signal in page.page.locator("#signals label").all_inner_texts():
            assert {f"{signal}, mean", f"{signal}, largest token"} <= set(options)
        assert {"step", "reward", "length"} <= set(options)
        page.page.select_option("#order", "mean future_credit")
        page.page.select_option("#filter-split", "training")
        found = [re.search(r" · ([−.\d]+)[A-Z]", text) for text in page.page.evaluate("probes.texts('.list li')")]
        values = [float(match[1].replace("−", "-")) for match in found if match]
        assert len(values) >= 8
        assert values == sorted(values, reverse=True)
        page.page.click("#reversed")
        first = page.page.locator(".list li").first.text_content()
        assert "–" in first or float(re.search(r"· ([.\d]+)", first)[1]) <= values[-1]


def test_tuning_trials_are_told(browser, long):  # noqa: F811
    with Page(browser, long["both"]) as page:
        assert page.page.locator(".tuning th").all_inner_texts() == ["learning rate", "1e-05", "3e-05", "distil"]
        assert page.page.locator(".tuning td").all_inner_texts() == ["✓ 50.0", "25.0"]
        assert page.text(".tuning .footnote").startswith("distil: the best is the lowest rate tried")


def test_differences_of_code_and_settings_are_told(browser, long):  # noqa: F811
    with Page(browser, long["both"]) as page:
        titles = page.page.locator("details.code summary").all_inner_texts()
        assert titles == [
            "Code of distil-0 and distil-1: commits aaaaaaaaa and bbbbbbbbb",
            "Not committed when it ran",
        ]
        page.page.locator("details.code summary").last.click()
        assert page.page.locator(".diff .plus").all_inner_texts() == ["+margin = 2"]
        assert page.page.locator(".diff .minus").all_inner_texts() == ["-margin = 1"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_4_5(browser, long, scheme):  # noqa: F811
    with Page(browser, long["both"], "#attempt=0&signal=disagreement", color_scheme=scheme) as page:
        page.page.wait_for_selector(".plot canvas")
        wrong(page)
        for view in ("disagreement", "gap", "sd_weight"):
            page.page.check(f"#signals input[value={view}]", force=True)
            assert page.page.evaluate("probes.faint()") == []
        page.page.keyboard.press("g")
        assert page.page.evaluate("probes.faint()") == []


def test_on_a_phone_every_target_has_44_pixels(browser, long):  # noqa: F811
    with Page(browser, long["both"], **PHONE) as page:
        page.page.click(".sift summary")
        page.page.locator(".token").nth(5).click()
        assert page.page.evaluate("probes.small()") == []


def test_on_a_phone_the_panel_opens_at_a_touch_and_closes(browser, long):  # noqa: F811
    with Page(browser, long["one"], **PHONE) as page:
        panel = page.page.locator(".inspector")
        assert not panel.is_visible()
        page.page.locator(".token").nth(7).tap()
        assert panel.is_visible()
        assert "token 8" in page.text(".inspector h3")
        box = panel.bounding_box()
        assert box["y"] + box["height"] <= 844 + 1
        page.page.locator(".inspector .close").tap()
        assert not panel.is_visible()
        page.page.locator("#jump").tap()
        assert panel.is_visible()
        token, shown = page.page.locator(".token.chosen").bounding_box(), panel.bounding_box()
        assert token["y"] + token["height"] <= shown["y"]


def test_streams_are_named_by_what_they_carry(browser, long, runs, tmp_path):  # noqa: F811
    with Page(browser, long["one"]) as page:
        names = page.page.locator("#signals label").all_inner_texts()
        assert {"future-credit weight", "distillation weight"} <= set(names)
        assert not {"reward weight", "policy-gradient weight"} & set(names)
    with Page(browser, write_report([runs["drift-0"]], tmp_path / "drift.html")) as page:
        names = page.page.locator("#signals label").all_inner_texts()
        assert {"reward weight", "distillation weight"} <= set(names)
        assert "future-credit weight" not in names
