"""The house policy as an expert, and one problem's tokens."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.house import HOUSE_PATH


@pytest.fixture(scope="session")
def house_tokenizer():
    return AutoTokenizer.from_pretrained(HOUSE_PATH)


@pytest.fixture(scope="session")
def house_model():
    return AutoModelForCausalLM.from_pretrained(HOUSE_PATH).eval()
