"""What a problem is: a function with its statement as docstring, and the arguments it is tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

CASES: dict[str, list[list[Any]]] = {}
"""By the function's name the arguments of each test. The first two are shown in the prompt, the others are hidden."""


def cases(*arguments: list[Any]) -> Callable[[Function], Function]:
    """Declare the tests of the function below: one list of positional arguments each."""

    def register(function: Function) -> Function:
        CASES[function.__name__] = list(arguments)
        return function

    return register
