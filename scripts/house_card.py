"""Makes the card of the shipped house policy again, from the policy: ``python scripts/house_card.py``.

It measures the policy as ``scripts/pretrain_house.py`` does after training, in about two minutes, and prints the card; how the
policy was made is taken from the card that is there. ``--write`` replaces that card, ``--check`` compares the numbers with it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from house_measure import measure
from pretrain_house import card_text

from errata import house
from errata.contexts import Renderer

CARD = Path(house.__file__).with_name("README.md")
NOISE = 0.125
"""How far two measurements may be apart: four standard errors of a share of one half, on 256 problems."""


def numbers_of(card: str) -> dict[str, dict[str, float]]:
    """The table of measurements in a card: problem set -> context -> share."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    head = next(i for i, cells in enumerate(lines) if cells[0] == "held-out problems")
    return {
        name: dict(zip(lines[head][1:], map(float, values), strict=True))
        for name, *values in lines[head + 1 :]
        if re.fullmatch(r"\d\.\d+", values[0])
    }


def made(card: str) -> str:
    """The paragraph that says how the policy was made."""
    return card.split("## How it was made\n\n")[1].splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--write", action="store_true", help="replace the card in the package")
    parser.add_argument(
        "--check", action="store_true", help="fail if a number differs from the card's by more than noise"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(CARD.parent).eval()
    tokenizer = AutoTokenizer.from_pretrained(CARD.parent, padding_side="left")
    here = CARD.read_text(encoding="utf-8")
    numbers = measure(model, tokenizer, Renderer("house"))
    text = card_text(numbers, model.num_parameters(), made(here))
    print(text)
    if args.write:
        CARD.write_text(text, encoding="utf-8")
    if args.check:
        old = numbers_of(here)
        far = [(s, c, old[s][c], v) for s, row in numbers.items() for c, v in row.items() if abs(v - old[s][c]) > NOISE]
        print("differs: " + ", ".join(map(str, far)) if far else "the card's numbers stand")
        return int(bool(far))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
