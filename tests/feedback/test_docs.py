"""Every example of docs/feedback.md prints what the page says."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

from errata.feedback import judge, load_verifier

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "feedback.md"


@pytest.mark.skipif(importlib.util.find_spec("sympy") is None, reason="the page grades mathematics")
def test_the_examples(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(
        str(PAGE),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF,
    )
    assert tried > 40
    assert failed == 0


def test_the_verifier_of_ones_own(tmp_path):
    (block,) = re.findall(r"```python\n# mine\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(block.splitlines()) == 9
    (tmp_path / "mine.py").write_text(block)
    completions = ["Please do.", [{"role": "assistant", "content": "Do."}]]
    verdicts = judge(
        load_verifier(f"{tmp_path / 'mine.py'}:polite"),
        prompts=["?"] * 2,
        completions=completions,
        columns={},
        timeout_s=10.0,
    )
    assert [(v.score, v.feedback, v.kind) for v in verdicts] == [(1.0, "", ""), (0.0, "Say please.", "style")]
