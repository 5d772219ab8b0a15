"""The report as a reader uses it, in headless Chromium: it loads silently, every control works, model text stays text."""

import os
import shutil
import time
from pathlib import Path

import pytest

from errata.reports.html import write_report

try:
    from playwright import sync_api
except ImportError:
    sync_api = None
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "needs Playwright (pip install playwright) and Chromium (apt-get install chromium); CONTRIBUTING.md says more"
# Where CI is set they fail without a browser, so that nobody takes a skipped test for a passed one.
pytestmark = pytest.mark.skipif(not (os.environ.get("CI") or (sync_api and CHROMIUM)), reason=MISSING)

CURRENT = "[...document.querySelectorAll('.list li')].findIndex(item => item.ariaSelected === 'true')"


@pytest.fixture(scope="module")
def browser():
    assert sync_api, MISSING
    assert CHROMIUM, MISSING
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    return {
        "distil": write_report([runs["distil-0"]], folder / "distil.html"),
        "grpo": write_report([runs["grpo-0"]], folder / "grpo.html"),
        "all": write_report(list(runs.values()), folder / "all.html"),
    }


class Page:
    """A page that must stay silent: console messages, errors and requests beyond the file itself are collected."""

    def __init__(self, browser, file: Path | str, fragment: str = "", **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.noise: list[str] = []
        allowed = ("file:", "data:", *([file] if isinstance(file, str) else []))
        self.page.on("console", lambda message: self.noise.append(message.text))
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(allowed) else self.noise.append(r.url))
        self.page.set_default_timeout(60_000)  # on a busy machine a page takes long to load
        self.page.add_init_script(path=Path(__file__).with_name("probes.js"))
        self.page.goto((file if isinstance(file, str) else file.as_uri()) + fragment)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def until(self, expression: str, timeout_s: float = 15.0):
        """Wait until an expression holds. (Playwright's own way evaluates text in the page, which its policy forbids.)"""
        deadline = time.monotonic() + timeout_s
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()
        if error[0] is None:
            assert self.noise == []


def chosen_token(page):
    return page.page.evaluate("Number(document.querySelector('.token.chosen').dataset.t)")


@pytest.mark.parametrize("name", ["distil", "grpo", "all"])
@pytest.mark.parametrize(
    "context",
    [{}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}],
    ids=["light", "dark", "phone"],
)
def test_it_opens_without_a_word_and_fits_the_screen(browser, reports, name, context):
    with Page(browser, reports[name], **context) as page:
        page.page.wait_for_selector(".plot canvas")
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.page.locator(".token").count() > 10
        assert not {"null", "undefined", "NaN"} & set(page.text("body").split())


def test_dark_is_dark(browser, reports):
    def brightness(scheme):
        with Page(browser, reports["grpo"], color_scheme=scheme) as page:
            colour = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    assert brightness("light") > 3 * 200
    assert brightness("dark") < 3 * 60


def test_a_script_in_a_completion_shows_as_text(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.fill("#filter-text", "</script>")
        assert page.text(".sift output") == "1 of 160 attempts"
        assert "</script><script>window.pwned = true</script>" in page.text(".tokens")
        assert page.page.evaluate("window.pwned === undefined")
        assert page.page.locator("img").count() == 0


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser, reports, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(reports["grpo"].read_text().replace("<main>", "<main><script>window.pwned = true</script>"))
    page = Page(browser, broken)
    assert page.page.evaluate("window.pwned === undefined")
    assert any("Content Security Policy" in message for message in page.noise)
    page.context.close()


def test_filters_leave_what_they_say(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.select_option("#filter-verdict", "wrong")
        page.page.select_option("#filter-difficulty", "hard")
        page.page.fill("#filter-from", "10")
        page.page.fill("#filter-to", "20")
        page.page.press("#filter-to", "Enter")
        # What is scrolled out of sight is not rendered: its text content is there all the same.
        items = page.page.evaluate(
            "[...document.querySelectorAll('.list li')].map(l => [...l.childNodes].map(n => n.textContent))"
        )
        assert len(items) > 3
        assert page.text(".sift output") == f"{len(items)} of 160 attempts"
        assert all(verdict == "wrong" for verdict, *_ in items)
        assert all(10 <= int(step.removeprefix(" · step ")) <= 20 for _, step, *_ in items)
        # The open attempt is one of them.
        assert "wrong" in page.text(".headline")
        assert "(hard)" in page.text(".headline")


def test_filters_that_leave_nothing_say_so(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.fill("#filter-text", "no such words")
        assert page.text(".sift output") == "0 of 160 attempts"
        assert "widen" in page.page.locator(".list").text_content()
        page.page.fill("#filter-text", "")
        assert page.text(".sift output") == "160 of 160 attempts"


def test_a_signal_colours_the_tokens(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.select_option("#filter-verdict", "wrong")

        def shades():
            return page.page.evaluate(
                "[...document.querySelectorAll('.token')].map(t => t.style.getPropertyValue('--much'))"
            )

        before = shades()
        assert len(set(before)) > 1
        page.page.check("#signals input[value=future_credit]", force=True)
        assert shades() != before
        assert "disagreement after this token" in page.text(".about")
        assert page.text(".inspector tr.now th") == "future credit"


def test_what_the_teacher_would_have_said_is_written_above(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.select_option("#filter-verdict", "wrong")
        correction = page.page.locator(".tokens rt").first
        assert correction.is_visible()
        wrong = page.page.locator(".tokens ruby .token").first
        wrong.hover()
        choices = page.page.locator(".choices li").all_inner_texts()
        assert choices[0].split() == [correction.inner_text(), "90.0", "%"]
        assert page.text(".choices .said-it code") == wrong.inner_text()
        page.page.uncheck("#corrections")
        assert not correction.is_visible()


def test_hovering_and_focus_give_a_tokens_numbers(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.locator(".token").nth(3).hover()
        assert "token 4" in page.text(".inspector h3")
        page.page.locator(".token").nth(5).click()
        assert "token 6" in page.text(".inspector h3")
        row = page.page.evaluate(f"errata.data.attempts[{CURRENT}]")
        shown = dict(line.split("\t") for line in page.page.locator(".inspector tr").all_inner_texts())
        assert float(shown["future credit"].replace("−", "-")) == row["signals"]["future_credit"][5]
        assert float(shown["advantage"].replace("−", "-")) == row["signals"]["advantage"][5]


def test_everything_can_be_done_by_keyboard(browser, reports):
    with Page(browser, reports["distil"]) as page:
        keys = page.page.keyboard
        page.page.focus(".token.chosen")
        keys.press("Home")
        assert chosen_token(page) == 0
        keys.press("ArrowRight")
        keys.press("ArrowRight")
        assert chosen_token(page) == 2
        keys.press("End")
        last = page.page.locator(".token").count() - 1
        assert chosen_token(page) == last
        keys.press("ArrowLeft")
        assert chosen_token(page) == last - 1
        assert page.page.evaluate("document.activeElement.classList.contains('token')")
        # One stop for Tab, wherever the choice is.
        assert page.page.locator(".token[tabindex='0']").count() == 1

        signal = page.text(".inspector tr.now th")
        keys.press("s")
        assert page.text(".inspector tr.now th") != signal
        attempt = page.text(".headline")
        keys.press("n")
        assert page.text(".headline") != attempt
        keys.press("p")
        assert page.text(".headline") == attempt

        page.page.focus(".list li[aria-selected=true]")
        keys.press("End")
        assert page.page.locator(".list li").last.get_attribute("aria-selected") == "true"
        assert page.page.evaluate("document.activeElement === document.querySelector('.list li[aria-selected=true]')")


def test_arrows_go_up_and_down_the_lines_of_a_long_attempt(browser, reports):
    with Page(browser, reports["distil"], viewport={"width": 360, "height": 800}) as page:
        page.page.focus(".token.chosen")
        page.page.keyboard.press("Home")
        page.page.keyboard.press("ArrowDown")
        down = chosen_token(page)
        boxes = page.page.evaluate(
            "down => [0, down].map(t => document.querySelector(`.token[data-t='${t}']`).getBoundingClientRect().toJSON())",
            down,
        )
        assert boxes[1]["y"] > boxes[0]["y"]
        assert abs(boxes[1]["x"] - boxes[0]["x"]) < 20
        page.page.keyboard.press("ArrowUp")
        assert chosen_token(page) == 0


def test_curves_answer_the_arrow_keys(browser, reports):
    with Page(browser, reports["distil"]) as page:
        plot = page.page.locator(".plot").first
        last = page.text(".legend b")
        plot.focus()
        page.page.keyboard.press("Home")
        assert page.text(".legend b") != last
        page.page.keyboard.press("End")
        assert page.text(".legend b") == last
        assert plot.get_attribute("aria-label").startswith("avg@8: avg@8 from ")


def test_the_axis_can_be_tokens_or_time(browser, reports):
    with Page(browser, reports["all"]) as page:
        page.page.check("input[name=axis-learning][value=tokens]", force=True)
        assert page.page.is_checked("input[name=axis-charts][value=tokens]")
        page.page.wait_for_selector(".plot canvas")


def test_folded_metrics_are_drawn_when_opened(browser, reports):
    with Page(browser, reports["distil"]) as page:
        folded = page.page.locator("#charts details:not([open])")
        assert folded.locator("canvas").count() == 0
        folded.locator("summary").click()
        page.page.wait_for_selector("#charts details:last-of-type canvas")


def test_the_address_leads_back_to_an_attempt(browser, reports):
    with Page(browser, reports["distil"], "#attempt=7&signal=advantage") as page:
        assert page.text(".inspector tr.now th") == "advantage"
        page.page.locator(".list li[aria-selected=true]").wait_for()
        assert page.page.evaluate(CURRENT) == 7


def test_what_the_teacher_was_shown_is_marked(browser, reports):
    with Page(browser, reports["distil"]) as page:
        page.page.select_option("#filter-verdict", "wrong")
        assert "trace on its own attempt" in page.text(".sheet")
        assert page.text(".sheet mark").strip().startswith("tried:")


def test_a_method_without_a_teacher_has_what_it_has(browser, reports):
    with Page(browser, reports["grpo"]) as page:
        names = page.page.locator("#signals label").all_inner_texts()
        assert "advantage" in names
        assert "disagreement" not in names
        assert page.page.locator("#corrections").count() == 0
        assert "nothing: no success in its group" in page.text(".sheet")


def test_attempts_of_all_runs_can_be_filtered_by_run(browser, reports):
    with Page(browser, reports["all"]) as page:
        page.page.select_option("#filter-run", "drift-1")
        assert "drift-1" in page.page.locator(".list li").first.text_content()
        assert "drift-1" in page.text(".headline .id")
