"""Turns the shapes in signatures into checks for the time of a test run; mypy has checked all other types."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and results of a function that says something about tensors."""
    states_shapes = any("Tensor" in str(annotation) for annotation in function.__annotations__.values())
    return beartype(function) if states_shapes else function
