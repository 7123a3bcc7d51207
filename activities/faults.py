"""Points between two effects, at which tests let a worker die."""

from collections.abc import Callable

Fault = Callable[[str], None]


def no_fault(point: str) -> None:
    """Production's fault points: nothing happens."""
