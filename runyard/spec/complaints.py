"""All that is wrong with a file, collected; and pydantic's errors in plain sentences."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from runyard.errors import InvalidRunFile, Problem
from runyard.spec import values
from runyard.spec.file import RunFile
from runyard.spec.tree import Document, Path, clip, did_you_mean, ordered

_ENOUGH = 2_000  # problems that are kept, of which 50 are shown
_WITH_HINTS = 200  # comparing words is what costs
_HOMES = {
    "Run": "the run",
    "Task": "a task",
    "Runtime": "the `runtime` of a task",
    "Container": "a container: `runtime: {containers: [{image: …}]}`",
    "RunStep": "a step `run`",
    "Retry": "`retry` of a task",
    "Timeouts": "`timeouts`",
    "Resources": "`resources` of a task",
    "Pod": "`pod` of a task",
}
_Schema = dict[str, Any]


class Complaints:
    """Problems of one document, in the order in which they were found."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = list(document.problems)

    @property
    def enough(self) -> bool:
        """Whether there is no point in looking for more."""
        return len(self.problems) >= _ENOUGH

    def near(self, word: str, known: Sequence[str], *, what: str = "") -> str:
        """A hint at what was meant; none when hundreds have been given."""
        return did_you_mean(word, known, what=what) if len(self.problems) < _WITH_HINTS else ""

    def add(self, path: Path, message: str, *, hint: str = "", key: bool = False, text: str = "") -> None:
        if not self.enough:
            self.problems.append(self.document.problem(path, message, hint=hint, key=key, text=text))

    def add_custom(self, path: Path, error: PydanticCustomError) -> None:
        context = error.context or {}
        self.add(path, str(context.get("sentence", error)), hint=str(context.get("hint", "")))

    def add_validation(self, path: Path, error: ValidationError) -> None:
        """Every error of a model that was read at ``path``."""
        for each in error.errors(include_url=False):
            if self.enough:
                return
            self._translate((*path, *each["loc"]), each)

    def raise_if_any(self) -> None:
        """Raises InvalidRunFile."""
        if self.problems:
            raise InvalidRunFile(ordered(self.problems), name=self.document.name)

    def _translate(self, path: Path, error: ErrorDetails) -> None:
        last = str(path[-1]) if path else ""
        context = error.get("ctx") or {}
        if last == "[key]":
            self.add(path[:-1], _sentence(error), hint=str(context.get("hint", "")), key=True)
        elif error["type"] == "extra_forbidden":
            self.add(path, f"there is no key `{clip(last)}` here", hint=self._meant(path), key=True)
        elif error["type"] == "missing":
            self.add(path[:-1], f"`{last}` is missing")
        elif error["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            self.add(path, _sentence(error), hint=did_you_mean(str(error["input"]), known, what="possible"))
        else:
            self.add(path, _sentence(error), hint=str(context.get("hint", "")))

    def _meant(self, path: Path) -> str:
        if len(self.problems) >= _WITH_HINTS:
            return ""
        key = str(path[-1])
        known = [each for each in keys_at(path[:-1]) if each != key]
        return did_you_mean(key, known) or _home_of(key) or did_you_mean(key, known, what="known keys")


def _sentence(error: ErrorDetails) -> str:
    context, kind = error.get("ctx") or {}, values.kind(error.get("input"))
    sentences: dict[str, Callable[[], str]] = {
        "runyard": lambda: str(context["sentence"]),
        "literal_error": lambda: (
            f"`{clip(error['input'])}` is not possible here"
            if isinstance(error["input"], str)
            else f"a text is wanted here, not {kind}"
        ),
        "list_type": lambda: f"a list is wanted here, not {kind}",
        "dict_type": lambda: f"a mapping is wanted here, not {kind}",
        "model_type": lambda: f"a mapping is wanted here, not {kind}",
        "too_short": lambda: "at least one is wanted here",
    }
    plain = sentences.get(error["type"])
    return plain() if plain else f"this is not valid: {error['msg'][:1].lower()}{error['msg'][1:]}"


def keys_at(path: Path) -> list[str]:
    """The keys that a mapping at this place of a run file may have."""
    schema = model_schema()
    here = [schema]
    for part in path:
        shapes = [shape for each in here for shape in _shapes(each, schema)]
        inner = [found for shape in shapes if (found := _inner(shape, part)) is not None]
        here = inner or [shape for shape in shapes if _kind(shape) == part] or here
    shapes = [shape for each in here for shape in _shapes(each, schema)]
    return list(dict.fromkeys(key for shape in shapes for key in shape.get("properties", {})))


def _home_of(key: str) -> str:
    """Where a key belongs that is right in itself, but not here."""
    definitions = model_schema()["$defs"]
    homes = [words for name, words in _HOMES.items() if key in definitions[name]["properties"]]
    return f"it belongs into {homes[0]}" if len(homes) == 1 else ""


@cache
def model_schema() -> _Schema:
    """The JSON Schema as pydantic makes it, with one spelling of each step."""
    return RunFile.model_json_schema()


def _shapes(schema: _Schema, whole: _Schema) -> Iterator[_Schema]:
    if "$ref" in schema:
        yield from _shapes(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
        return
    branches = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    if not branches:
        yield schema
    for branch in branches:
        yield from _shapes(branch, whole)


def _inner(shape: _Schema, part: str | int) -> _Schema | None:
    if isinstance(part, int):
        items = shape.get("items")
        return items if isinstance(items, dict) else None
    found = shape.get("properties", {}).get(part, shape.get("additionalProperties"))
    return found if isinstance(found, dict) else None


def _kind(shape: _Schema) -> object:
    return shape.get("properties", {}).get("type", {}).get("const")
