"""A run file as data, in which every value still knows where it was written.

`Node` keeps two views of a value: ``data``, plain dicts, lists and texts that models can validate, and its
place. Aliases of YAML share one Node, so a big file made with anchors costs what it is long, not what it
expands to; what it expands to is counted by addition and bounded.

Numbers and booleans stay the text that was written (`Written`), with what they mean beside it: ``3.10`` in a
matrix or in an environment is "3.10", never 3.1. Turned down: letting a YAML or JSON library build the data,
which loses places, duplicate keys and written numbers; and keeping places in a table by path, which would
have an entry for everything that an alias repeats.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from runyard.errors import InvalidRunFile, Problem

Path = tuple[str | int, ...]

MAX_TEXT_BYTES = 1 << 20
MAX_NODES = 500_000
MAX_CHARACTERS = 32 << 20
MAX_DEPTH = 64
SHOWN = 50

_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_BASES = {"0o": 8, "0x": 16}


class Written(str):
    """A number or a boolean: the text as written, and its ``value``."""

    __slots__ = ("value",)
    value: int | float | bool


def resolve(text: str) -> str | Written | None:
    """What an unquoted scalar means in the core schema of YAML 1.2; ``yes`` and ``on`` are texts there."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return _written(text, text[0] in "tT")
    if _INT.fullmatch(text):
        base = _BASES.get(text[:2], 10)
        return _written(text, int(text[2:] if base != 10 else text, base))
    if _FLOAT.fullmatch(text):
        return _written(text, float(text))
    return text


def _written(text: str, value: int | float | bool) -> Written:
    written = Written(text)
    written.value = value
    return written


class Node:
    """One value. ``pairs`` of a mapping: key → (line and column of the key, value); ``items`` of a list.

    ``nodes`` and ``characters`` count what it expands to, itself included.
    """

    __slots__ = ("characters", "column", "data", "items", "line", "nodes", "pairs")

    def __init__(self, data: object, line: int, column: int) -> None:
        self.data = data
        self.line = line
        self.column = column
        self.nodes = 1
        self.characters = len(data) if isinstance(data, str) else 0
        self.pairs: dict[str, tuple[int, int, Node]] = {}
        self.items: list[Node] = []


class Grower:
    """Makes Nodes and notes what is wrong with them; it raises only for what cannot be gone on with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []

    def note(self, message: str, line: int, column: int, *, text: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message=message, line=line, column=column, text=clip(text), hint=hint))

    def give_up(self, message: str, line: int = 0, column: int = 0, *, hint: str = "") -> InvalidRunFile:
        """The error to raise when nothing more can be read; with all that was noted before it."""
        last = Problem(message=message, line=line, column=column, hint=hint)
        return InvalidRunFile(ordered([*self.problems, last]), name=self.name)

    def scalar(self, data: str | None, line: int, column: int) -> Node:
        if isinstance(data, str) and (wrong := unusable(data)):
            self.note(wrong, line, column, hint="remove it")
            data = re.sub("[\0\ud800-\udfff]", "\ufffd", data)  # one mistake is one problem
        return Node(data, line, column)

    def sequence(self, items: list[Node], line: int, column: int) -> Node:
        node = Node([item.data for item in items], line, column)
        node.items = items
        for item in items:
            node.nodes += item.nodes
            node.characters += item.characters
        return self._bounded(node)

    def mapping(self, pairs: Sequence[tuple[Node, Node]], line: int, column: int) -> Node:
        node = Node({}, line, column)
        for key, value in pairs:
            self._pair(node, key, value)
            node.nodes += value.nodes
            node.characters += value.characters + key.characters
        node.data = {key: value.data for key, (_, _, value) in node.pairs.items()}
        return self._bounded(node)

    def _pair(self, node: Node, key: Node, value: Node) -> None:
        if not isinstance(key.data, str):
            hint = "put quotes around a value that begins with `{{`" if key.data is not None else "name the key"
            self.note("a key must be a text", key.line, key.column, hint=hint)
            return
        name = str(key.data)
        if name in node.pairs:
            line, column, _ = node.pairs[name]
            hint = f"it is already at {line}:{column}; keep one of the two" if line else "keep one of the two"
            self.note(f"the key `{clip(name)}` is written twice", key.line, key.column, text=name, hint=hint)
            return
        node.pairs[name] = (key.line, key.column, value)

    def _bounded(self, node: Node) -> Node:
        if node.nodes > MAX_NODES or node.characters > MAX_CHARACTERS:
            raise self.give_up(
                f"the file expands to more than {MAX_NODES:,} values or {MAX_CHARACTERS >> 20} MiB of text",
                node.line,
                node.column,
                hint="use fewer aliases of big blocks",
            )
        return node


@dataclass(frozen=True, kw_only=True)
class Document:
    """A run file that could be read.

    ``places`` is False where the values have no line: JSON callers, Jsonnet. ``templates`` is False where no
    text can have `{{ matrix.NAME }}` in it, which spares big files a look at every text.
    """

    name: str
    root: Node
    places: bool
    templates: bool = True
    problems: tuple[Problem, ...] = ()

    def problem(self, path: Path, message: str, *, hint: str = "", key: bool = False, text: str = "") -> Problem:
        """A Problem at ``path``, or at its deepest part that is there; ``key`` points at the key itself."""
        node, line, column, real = self._find(path)
        shown = text
        if key:
            shown = text or str(path[-1])
        elif isinstance(node.data, str):
            line, column, shown = node.line, node.column, text or str(node.data)
        else:
            line, column = node.line, node.column
        if not self.places:
            line, column = 0, 0
        return Problem(
            message=message, line=line, column=column, text=clip(shown), hint=hint, path=json_path(real)
        )

    def _find(self, path: Path) -> tuple[Node, int, int, Path]:
        """The Node, the place of the key that led to it, and the path as far as it is written in the file.

        Models may have put parts of their own into the path, such as the kind of a step: they are passed over.
        What a shorthand leaves beside it (`{run: make, name: x}`) is looked up in the mapping around it.
        """
        node, around = self.root, self.root
        line, column = node.line, node.column
        real: Path = ()
        for part in path:
            if isinstance(part, int):
                if part < len(node.items):
                    node, around, real = node.items[part], node, (*real, part)
                    line, column = node.line, node.column
                continue
            beside = part not in node.pairs and not node.pairs
            pairs = around.pairs if beside else node.pairs
            if part in pairs:
                around, real = (around, (*real[:-1], part)) if beside else (node, (*real, part))
                line, column, node = pairs[part]
        return node, line, column, real


def json_path(path: Path) -> str:
    """``$.runs[0].tasks[2].name``"""
    parts = ["$"]
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            parts.append(f".{part}" if re.fullmatch(r"\w+", part) else f"[{clip(part)!r}]")
    return "".join(parts)


def clip(text: str, *, length: int = 60) -> str:
    """The text on one line, at most ``length`` characters of it, with nothing that a terminal would obey."""
    shown = "".join(c if c.isprintable() else "�" for c in " ".join(text[: 4 * length].split()))
    return shown if len(shown) <= length and len(text) <= 4 * length else shown[: length - 1] + "…"


def unusable(text: str) -> str:
    """What makes this text unfit for any program, in words; empty when nothing does."""
    if "\0" in text:
        return "there is a NUL character in this text"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "there is half a character (a lone surrogate) in this text"
    return ""


def control_character(text: str) -> re.Match[str] | None:
    """The first character that no text file has."""
    return re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff￾￿]", text)


def name_of(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def did_you_mean(word: str, known: Sequence[str], *, what: str = "") -> str:
    """A hint that names the nearest of the known words; ``what`` introduces all of them where they are few."""
    near = get_close_matches(word[:200], known, n=1, cutoff=0.6) if len(known) <= 2_000 else []
    if near:
        return f"did you mean `{clip(near[0])}`?"
    if what and 0 < len(known) <= 12:
        return f"{what}: {', '.join(clip(each) for each in known)}"
    return ""


def ordered(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once, in the order of the file, the first 50 of them and the number of the others."""
    once = {(each.line, each.column, each.message, each.path * (not each.line)): each for each in problems}
    by_place = sorted(once.values(), key=lambda each: (each.line, each.column))
    if len(by_place) <= SHOWN:
        return by_place
    return [*by_place[:SHOWN], Problem(message=f"and {len(by_place) - SHOWN} more")]
