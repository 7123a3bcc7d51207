"""JSON, as text or as an object, to Nodes.

JSON is nearly a part of YAML, but only nearly (tabs, `\\ud83d\\ude00`), and the standard decoder tells no
places and lets later duplicates win. So texts are read here; the grammar is small.
"""

import json
import re

from runyard.spec.tree import MAX_DEPTH, Grower, Node, resolve

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\n\r]*")
_WORD = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?![\w.])|true\b|false\b|null\b")


def grow(text: str, grower: Grower) -> Node | None:
    """The root, or None where there is nothing but blanks. Raises InvalidRunFile."""
    reader = _Reader(text, grower)
    reader.blanks()
    if reader.at == len(text):
        return None
    node = reader.value(0)
    reader.blanks()
    if reader.at < len(text):
        raise reader.wrong("there is more after the end of the JSON value")
    return node


def grow_object(value: object, grower: Grower, *, depth: int = 0) -> Node:
    """An object that somebody else has decoded; it has no places. Raises InvalidRunFile."""
    if depth > MAX_DEPTH:
        raise grower.give_up("the values are nested too deeply")
    if isinstance(value, dict):
        pairs = [(grower.scalar(str(k), 0, 0), grow_object(v, grower, depth=depth + 1)) for k, v in value.items()]
        return grower.mapping(pairs, 0, 0)
    if isinstance(value, list | tuple):
        return grower.sequence([grow_object(each, grower, depth=depth + 1) for each in value], 0, 0)
    if isinstance(value, bool | int | float):
        return grower.scalar(resolve(_digits(value)), 0, 0)
    if value is None or isinstance(value, str):
        return grower.scalar(value, 0, 0)
    raise grower.give_up(f"a value of type {type(value).__name__} is not JSON")


def _digits(value: bool | int | float) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # more digits than Python prints
        return "a number of too many digits"


class _Reader:
    def __init__(self, text: str, grower: Grower) -> None:
        self.text = text
        self.grower = grower
        self.at = 0
        self._line = 1
        self._line_start = 0
        self._counted = 0

    def blanks(self) -> None:
        found = _BLANKS.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def value(self, depth: int) -> Node:
        line, column = self._place()
        if depth > MAX_DEPTH:
            raise self.wrong("the values are nested too deeply")
        first = self.text[self.at : self.at + 1]
        if first == "{":
            return self._mapping(depth, line, column)
        if first == "[":
            return self._sequence(depth, line, column)
        if first == '"':
            return self._string()
        found = _WORD.match(self.text, self.at)
        if not found:
            raise self.wrong("a JSON value is expected here", hint="texts and keys have double quotes")
        self.at = found.end()
        return self.grower.scalar(resolve(found.group()), line, column)

    def _string(self) -> Node:
        line, column = self._place()
        try:
            value, end = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.at = error.pos
            raise self.wrong(
                "this text in double quotes is not valid JSON", hint="close it, check its \\ escapes"
            ) from error
        self.at = end
        return self.grower.scalar(value, line, column)

    def _sequence(self, depth: int, line: int, column: int) -> Node:
        items: list[Node] = []
        while self._goes_on("]", first=not items):
            items.append(self.value(depth + 1))
        return self.grower.sequence(items, line, column)

    def _mapping(self, depth: int, line: int, column: int) -> Node:
        pairs: list[tuple[Node, Node]] = []
        while self._goes_on("}", first=not pairs):
            if self.text[self.at : self.at + 1] != '"':
                raise self.wrong("a key in double quotes is expected here")
            key = self._string()
            self.blanks()
            if self.text[self.at : self.at + 1] != ":":
                raise self.wrong("a `:` is expected here")
            self.at += 1
            self.blanks()
            pairs.append((key, self.value(depth + 1)))
        return self.grower.mapping(pairs, line, column)

    def _goes_on(self, end: str, *, first: bool) -> bool:
        """Step over the opening bracket or the comma; False at the closing bracket, which is stepped over too."""
        if first:
            self.at += 1
        self.blanks()
        found = self.text[self.at : self.at + 1]
        if found == end:
            self.at += 1
            return False
        if first:
            return True
        if found != ",":
            raise self.wrong(f"a `,` or `{end}` is expected here")
        self.at += 1
        self.blanks()
        if self.text[self.at : self.at + 1] == end:
            raise self.wrong("there is a `,` before the end", hint="remove it")
        return True

    def wrong(self, message: str, *, hint: str = "") -> Exception:
        return self.grower.give_up(message, *self._place(), hint=hint)

    def _place(self) -> tuple[int, int]:
        newlines = self.text.count("\n", self._counted, self.at)
        if newlines:
            self._line += newlines
            self._line_start = self.text.rfind("\n", self._counted, self.at) + 1
        self._counted = max(self._counted, self.at)
        return self._line, self.at - self._line_start + 1
