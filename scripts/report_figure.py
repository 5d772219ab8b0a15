"""Takes the picture of a report's attempt in the README: ``python scripts/report_figure.py runs/demo``.

It needs Playwright and Chromium. It shows the attempt on which the page opens, a wrong one where the teacher gives another
token, with the first token of high disagreement in focus.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from errata.reports.html import write_report

OUT = Path(__file__).parents[1] / "docs" / "figures" / "rollout-tokens.png"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of recipes/demo.yaml")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        report = write_report([args.run], Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(report.as_uri())
        page.wait_for_selector(".token")
        page.keyboard.press("d")
        page.locator("#rollouts .sheet").screenshot(path=args.out)
        browser.close()
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
