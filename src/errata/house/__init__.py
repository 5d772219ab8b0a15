"""The house policy: a Qwen3 model of half a million parameters, pre-trained for the embedded tasks. Its card is README.md.

``AutoModelForCausalLM.from_pretrained(HOUSE_PATH)`` and ``AutoTokenizer.from_pretrained(HOUSE_PATH)`` load it.
"""

from pathlib import Path

__all__ = ["HOUSE_PATH"]

HOUSE_PATH = str(Path(__file__).parent)
"""Directory of the weights, the tokenizer and the chat template."""
