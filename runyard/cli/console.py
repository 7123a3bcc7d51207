"""What we print on: a terminal that can be redrawn, or a stream that only grows."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from pydantic import BaseModel

from runyard.cli.render import Line

_COLOURS = {
    "good": "32", "bad": "31", "busy": "36", "idle": "2", "warn": "33", "strong": "1", "faint": "2",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Console:
    """``live``: lines can be redrawn. ``color`` follows NO_COLOR, FORCE_COLOR and the stream."""

    stream: TextIO
    live: bool
    color: bool
    ascii_only: bool

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.stream.write(self.styled(line) + "\n")
        self.stream.flush()

    def text(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    def styled(self, line: Line) -> str:
        if not self.color:
            return "".join(span.text for span in line)
        return "".join(
            f"\x1b[{code}m{span.text}\x1b[0m" if (code := _COLOURS.get(span.style)) else span.text for span in line
        )


def open_console(*, ascii_only: bool = False, stream: TextIO | None = None) -> Console:
    """Of stdout, unless another stream is given."""
    stream = stream or sys.stdout
    terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    color = terminal if not os.environ.get("FORCE_COLOR") else True
    return Console(
        stream=stream,
        live=terminal,
        color=color and not os.environ.get("NO_COLOR"),
        ascii_only=ascii_only or not _shows_unicode(stream),
    )


def _shows_unicode(stream: TextIO) -> bool:
    try:
        "✔✖●◷○⚠…·".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_json(value: object) -> None:
    """One JSON document on stdout; times are ISO 8601 in UTC."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value
