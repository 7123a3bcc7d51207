"""What a measurement says: a row of benchmarks/RESULTS.md, with a median and its spread."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

HEAD = "| what | found | bar |\n|---|---|---|"


class Samples:
    """Numbers of one kind. Never a mean: one disturbed repeat would move it."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values = list(values)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, unit: str) -> str:
        """The median, and in parentheses the smallest and the largest."""
        low, high = min(self.values), max(self.values)
        return f"{_short(self.median)} {unit} ({_short(low)} to {_short(high)})"


@dataclass(frozen=True)
class Row:
    """``met`` says whether the bar, if there is one, was met by the median."""

    what: str
    found: str
    bar: str = ""
    met: bool = True

    def __str__(self) -> str:
        return f"| {self.what} | {self.found} | {self.bar}{'' if self.met else ' **missed**'} |"


def report(rows: Iterable[Row]) -> int:
    """Print a table of them; the exit code, 1 where a bar was missed."""
    found = list(rows)
    print(HEAD)
    for row in found:
        print(row)
    return int(not all(row.met for row in found))


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
