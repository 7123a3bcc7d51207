"""From what the caller has (a text in one of three languages, bytes, an object) to a Document."""

import json
from collections.abc import Mapping
from pathlib import PurePath

from pydantic import JsonValue

from runyard.errors import InvalidRunFile
from runyard.spec import jsonnet, jsontext, yamltext
from runyard.spec.tree import MAX_TEXT_BYTES, Document, Grower, Node, control_character, name_of

_START = "begin with `runs:`; `runyard schema` describes the format"


def decode(data: bytes, *, name: str) -> str:
    """The text of a run file as read from a disk. Raises InvalidRunFile when it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise Grower(name).give_up(
            "the file is not text in UTF-8", line, column, hint="save it as UTF-8; a binary file is not a run file"
        ) from error


def read(file: str | Mapping[str, JsonValue], *, name: str, ctx: dict[str, JsonValue] | None = None) -> Document:
    """Read a run file; ``name``'s ending chooses the language, ``ctx`` is what a Jsonnet program is told.

    Raises InvalidRunFile where it cannot be read to its end; lesser problems are in the Document.
    """
    grower = Grower(name)
    ending = PurePath(name).suffix.lower()
    if not isinstance(file, str):
        root: Node | None = jsontext.grow_object(dict(file), grower)
        return _document(root, grower, places=False)
    text = _text(file, grower)
    if ending in (".jsonnet", ".libsonnet"):
        value = jsonnet.evaluate(text, ctx=ctx or {}, grower=grower)
        return _document(jsontext.grow_object(value, grower), grower, places=False)
    if ending in (".star", ".bzl"):
        raise grower.give_up("Starlark is not supported", hint="write YAML, JSON or Jsonnet")
    is_json = ending == ".json" or _is_json(text)
    root = jsontext.grow(text, grower) if is_json else yamltext.grow(text, grower)
    return _document(root, grower, places=True, templates="matrix" in text or "\\" in text)


def _is_json(text: str) -> bool:
    """Programs send JSON without saying so; YAML would refuse what is JSON's own, like `\\ud83d\\ude00`."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _text(text: str, grower: Grower) -> str:
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise grower.give_up("the file is larger than 1 MiB", hint="use anchors, a matrix or several files")
    if not text.strip():
        raise _empty(grower)
    if found := control_character(text):
        before = text[: found.start()]
        raise grower.give_up(
            f"the file is not text: it contains the character {name_of(found.group())}",
            before.count("\n") + 1,
            found.start() - before.rfind("\n"),
            hint="remove it; a binary file is not a run file",
        )
    return text


def _document(root: Node | None, grower: Grower, *, places: bool, templates: bool = True) -> Document:
    if root is None or root.data is None:
        raise _empty(grower)
    if not isinstance(root.data, dict):
        raise grower.give_up("a run file is a mapping with the key `runs`", root.line, root.column, hint=_START)
    return Document(
        name=grower.name, root=root, places=places, templates=templates, problems=tuple(grower.problems)
    )


def _empty(grower: Grower) -> InvalidRunFile:
    return grower.give_up("the file is empty", hint=_START)
