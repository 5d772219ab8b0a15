"""What every test shares: a tiny policy, no network, one thread."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from tests.tiny import build_model, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def tiny_model(tokenizer):
    return build_model(len(tokenizer))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import sys

    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
