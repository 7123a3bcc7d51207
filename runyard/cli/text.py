"""Words and widths of what is shown: pure, and safe for a terminal whatever a task has printed."""

import re
import unicodedata
from datetime import datetime

# CSI and OSC sequences, two-character escapes, then every other control character
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """One line without anything that moves a cursor or changes a colour. What `\\r` overwrote is gone."""
    text = _ESCAPES.sub("", text.rstrip("\r\n"))
    return _CONTROLS.sub(" ", text.rpartition("\r")[2]).rstrip()


def width_of(text: str) -> int:
    """Columns that a cleaned text takes on a terminal."""
    return len(text) if text.isascii() else sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int, *, mark: str = "…") -> str:
    """At most ``width`` columns, with a mark where something was left out."""
    if width_of(text) <= width:
        return text
    if width <= len(mark):
        return mark[: max(0, width)]
    taken, room = [], width - len(mark)
    for char in text:
        room -= _width(char)
        if room < 0:
            break
        taken.append(char)
    return "".join(taken).rstrip() + mark


def pad(text: str, width: int) -> str:
    return text + " " * max(0, width - width_of(text))


def seconds(value: float) -> str:
    """A duration: `0.2 s`, `21.4 s`, `2 m 05 s`, `1 h 02 m`, `3 d 04 h`."""
    value = max(0.0, value)
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"


def between(start: datetime | None, end: datetime | None) -> str:
    return seconds((end - start).total_seconds()) if start and end else ""


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
