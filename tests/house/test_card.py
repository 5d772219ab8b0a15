"""The card of the shipped policy is what its script makes of the numbers in it."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def house_card(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import house_card

    return house_card


def test_the_card_is_made_again_from_its_numbers(house_card):
    from transformers import AutoModelForCausalLM

    card = house_card.CARD.read_text()
    numbers = house_card.numbers_of(card)
    assert set(numbers) == {"rulebook/sharpen", "rulebook/new-rule", "random tables"}
    parameters = AutoModelForCausalLM.from_pretrained(house_card.CARD.parent).num_parameters()
    assert house_card.card_text(numbers, parameters, house_card.made(card)) == card


@pytest.mark.slow
def test_the_shipped_policy_does_what_its_card_says(house_card, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["house_card.py", "--check"])
    assert house_card.main() == 0
