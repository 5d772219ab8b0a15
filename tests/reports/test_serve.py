"""``errata report --serve``: the page follows a running training, and only who knows the address sees it."""

import http.client
from threading import Thread

import pytest
from tests.reports.test_html_browser import Page, browser, pytestmark  # noqa: F401

from errata.reports.rundir import RunDirectory
from errata.reports.serve import HOST, Server

NEEDS_BROWSER = pytestmark
pytestmark = []  # the other tests need no browser


@pytest.fixture
def served(make, tmp_path):
    run = make(tmp_path / "run", steps=4, every=2, finished=False)
    server = Server([run])
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield server, run
    server.shutdown()
    server.server_close()


def ask(server, path, **headers):
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.getheader("ETag"), answer.read()


def test_it_listens_on_the_loopback_address_alone(served):
    assert served[0].server_address[0] == "127.0.0.1"


def test_only_the_address_with_its_token_is_answered(served):
    server, _ = served
    path = f"/{server.token}/"
    assert len(server.token) >= 32
    status, tag, page = ask(server, path)
    assert (status, b"<title>run" in page) == (200, True)
    assert ask(server, path, **{"If-None-Match": tag})[0] == 304
    for wrong in ("/", "/report.html", path[:-2] + "/", path + "x", path.upper()):
        status, _, body = ask(server, wrong)
        assert (status, body) == (404, b"")
    # A page of another site that gives its own name this machine's address sends that name.
    assert ask(server, path, Host=f"evil.example:{server.server_port}")[0] == 404


def test_the_page_changes_with_the_run_and_only_then(served):
    server, run = served
    first, page = server.current()
    assert server.current() == (first, page)
    RunDirectory(run).write("metrics", {"step": 5, "reward": 0.25})
    second, changed = server.current()
    assert second != first
    assert changed != page


def test_a_port_in_use_is_said(served):
    with pytest.raises(ValueError, match=rf"^port: {served[0].server_port} cannot be used"):
        Server([served[1]], port=served[0].server_port)


@pytest.mark.skipif(*NEEDS_BROWSER.args, **NEEDS_BROWSER.kwargs)
def test_an_open_page_follows_the_run(served, browser):  # noqa: F811
    server, run = served
    with Page(browser, server.address) as page:
        assert page.text(".sift output") == "16 of 16 attempts"
        page.page.locator(".token").nth(3).click()
        page.page.select_option("#filter-verdict", "wrong")
        shown, headline = page.text(".tokens"), page.text(".headline .id")
        directory = RunDirectory(run)
        row = directory.read("rollouts")[-1]
        directory.write("rollouts", {**row, "step": 5})
        directory.write("metrics", {**directory.read("metrics")[-1], "step": 5, "reward": 0.0625})
        page.until("errata.data.attempts.length === 17")
        page.page.locator("#charts .plot").first.focus()
        page.page.keyboard.press("End")
        assert page.text("#charts .where") == "step 5"
        # What was open is open, and the filter stands.
        assert (page.text(".tokens"), page.text(".headline .id")) == (shown, headline)
        assert page.page.input_value("#filter-verdict") == "wrong"
        assert page.text(".live").startswith("following the run")
