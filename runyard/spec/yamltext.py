"""YAML to Nodes, from the parser's events.

The events of PyYAML (libyaml where it is there) carry every place and cost little; the tree is grown here
with a stack of its own, so depth, aliases and duplicate keys are ours to judge. Turned down: PyYAML's own
composer, which recurses in C, lets later duplicates win and resolves scalars by YAML 1.1 (``on`` is true).
"""

import re

import yaml
from yaml import events

from runyard.spec.tree import MAX_DEPTH, Grower, Node, resolve

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")} | {None, "!"}
_MERGE = "<<"

_SENTENCES = {
    "found character '\\t' that cannot start any token": "a tab is used for indentation",
    "found a tab character where an indentation space is expected": "a tab is used for indentation",
    "found a tab character that violates indentation": "a tab is used for indentation",
    "mapping values are not allowed in this context": "there is a `:` where no key can be",
    "mapping values are not allowed here": "there is a `:` where no key can be",
    "found unexpected end of stream": "a quote is opened and never closed",
    "did not find expected ',' or ']'": "a `[` is opened and not closed, or a `,` is missing",
    "did not find expected ',' or '}'": "a `{` is opened and not closed, or a `,` is missing",
    "did not find expected key": "a key is expected here",
    "could not find expected ':'": "there is no `:` after this key",
    "did not find expected '-' indicator": "an item of the list (`- …`) is expected here",
    "did not find expected node content": "a value is expected here",
    "found unknown escape character": "there is no such escape in a text in double quotes",
    "exceeded maximum nesting depth": "the values are nested too deeply",
}
_HINTS = {
    "a tab is used for indentation": "indent with spaces",
    "there is a `:` where no key can be": "check the indentation; put quotes around a text that contains `: `",
    "a quote is opened and never closed": "close it, or remove it",
    "a key is expected here": "check the indentation and the quotes",
    "there is no `:` after this key": "write `key: value`",
    "there is no such escape in a text in double quotes": "use single quotes, or write \\\\ for a backslash",
}


def grow(text: str, grower: Grower) -> Node | None:
    """The document's root, or None where there is no document. Raises InvalidRunFile."""
    stack = _Stack(grower)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            stack.take(event)
    except yaml.YAMLError as error:
        raise grower.give_up(*_plain(error, text), hint=_hint(error, text)) from error
    return stack.root


class _Stack:
    """The containers that are open, outermost first."""

    def __init__(self, grower: Grower) -> None:
        self.grower = grower
        self.root: Node | None = None
        self._documents = 0
        self._open: list[tuple[events.Event, list[Node]]] = []
        self._anchors: dict[str, Node | None] = {}

    def take(self, event: events.Event) -> None:
        if isinstance(event, events.ScalarEvent):
            self._put(event, self._scalar(event))
        elif isinstance(event, events.AliasEvent):
            self._put(event, self._alias(event))
        elif isinstance(event, events.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, events.CollectionEndEvent):
            start, nodes = self._open.pop()
            self._put(start, self._close(start, nodes))
        elif isinstance(event, events.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                hint = "keep one; several runs go into one list `runs`"
                raise self.grower.give_up("there is a second document", *_place(event), hint=hint)

    def _start(self, event: events.CollectionStartEvent) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise self.grower.give_up("the values are nested too deeply", *_place(event))
        self._check_tag(event.tag, event)
        if event.anchor:
            self._anchors[event.anchor] = None  # known, but not whole yet: an alias to it is a circle
        self._open.append((event, []))

    def _put(self, event: events.Event, node: Node) -> None:
        anchor = getattr(event, "anchor", None)
        if anchor and not isinstance(event, events.AliasEvent):
            self._anchors[anchor] = node
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node

    def _scalar(self, event: events.ScalarEvent) -> Node:
        self._check_tag(event.tag, event)
        plain = event.implicit[0]
        return self.grower.scalar(resolve(event.value) if plain else event.value, *_place(event))

    def _alias(self, event: events.AliasEvent) -> Node:
        node = self._anchors.get(event.anchor or "")
        if node is not None:
            return node
        circle = event.anchor in self._anchors
        self.grower.note(
            "an alias contains itself" if circle else "there is no such anchor before this alias",
            *_place(event),
            text=f"*{event.anchor}",
            hint="" if circle else f"write `&{event.anchor}` at the value that it repeats",
        )
        return Node("", *_place(event))

    def _close(self, start: events.Event, nodes: list[Node]) -> Node:
        if isinstance(start, events.SequenceStartEvent):
            return self.grower.sequence(nodes, *_place(start))
        return self.grower.mapping(self._merged(nodes), *_place(start))

    def _merged(self, nodes: list[Node]) -> list[tuple[Node, Node]]:
        """Keys and values, with `<<: *anchor` replaced by those keys of the anchor that are not written here."""
        pairs = list(zip(nodes[::2], nodes[1::2], strict=True))
        if not any(key.data == _MERGE for key, _ in pairs):
            return pairs
        own = [(key, value) for key, value in pairs if key.data != _MERGE]
        names = {key.data for key, _ in own if isinstance(key.data, str)}
        for key, value in pairs:
            for source in (value.items or [value]) if key.data == _MERGE else []:
                if not isinstance(source.data, dict):
                    self.grower.note("`<<` takes a mapping or a list of mappings", key.line, key.column)
                for name, (line, column, node) in source.pairs.items():
                    if name not in names:
                        names.add(name)
                        own.append((Node(name, line, column), node))
        return own

    def _check_tag(self, tag: str | None, event: events.Event) -> None:
        if tag not in _KNOWN_TAGS:
            self.grower.note("tags have no meaning here", *_place(event), text=str(tag), hint="remove the tag")


def _place(event: events.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _plain(error: yaml.YAMLError, text: str) -> tuple[str, int, int]:
    """The parser's complaint in a sentence of ours, and its place."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    if problem == "found character that cannot start any token":
        found = _character(text, line, column)
        problem = "found character '\\t' that cannot start any token" if found == "\t" else problem
        if found != "\t":
            return f"a value cannot begin with `{found}`", line, column
    known = next((ours for theirs, ours in _SENTENCES.items() if theirs in problem), "")
    return known or f"this is not valid YAML: {problem}", line, column


def _hint(error: yaml.YAMLError, text: str) -> str:
    sentence = _plain(error, text)[0]
    if sentence.startswith("a value cannot begin with"):
        return "put quotes around it"
    return _HINTS.get(sentence, "")


def _character(text: str, line: int, column: int) -> str:
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    found = lines[line - 1][column - 1 : column] if 0 < line <= len(lines) else ""
    return found or "?"
