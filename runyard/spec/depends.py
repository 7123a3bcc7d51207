"""`depends`: `task`, `{task: [conditions]}` or `{task: name, conditions: [...]}`, one an entry."""

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from runyard.model import Input
from runyard.spec import plan, values
from runyard.spec.tree import clip, did_you_mean

CONDITIONS: tuple[plan.Condition, ...] = ("on_success", "on_failure", "on_skipped", "always")


def _many(value: object) -> list[object]:
    return values.words(value)


class Dependency(Input):
    task: str
    conditions: list[plan.Condition]


def dependency(value: object) -> tuple[str, list[plan.Condition]]:
    """Task and conditions, from `task`, `{task: [conditions]}` or `{task: name, conditions: [...]}`."""
    if isinstance(value, str):
        return values.filled(value), ["on_success"]
    if not isinstance(value, dict) or not value:
        raise values.wrong(f"the name of a task is wanted here, not {values.kind(value)}")
    named = value.get("task")
    if isinstance(named, str) and (named not in CONDITIONS or len(value) > 1):
        stray = next((key for key in value if key not in ("task", "conditions")), "")
        task, conditions = named, value.get("conditions")
    else:
        task, conditions = next(iter(value.items()))
        stray = next((key for key in value if key != task), "")
    if stray:
        raise values.wrong(f"`{clip(stray)}` is one key too many", "write {TASK: [on_failure]}, one task an item")
    return values.filled(task), _conditions(conditions)


def _dependency(value: object) -> Dependency:
    task, conditions = dependency(value)
    return Dependency(task=task, conditions=conditions)


def _conditions(value: object) -> list[plan.Condition]:
    found: list[plan.Condition] = []
    for each in [] if value is None else values.words(value):
        known = next((condition for condition in CONDITIONS if condition == each), None)
        if known is None:
            word = clip(each) if isinstance(each, str) else values.kind(each)
            raise values.wrong(f"`{word}` is not a condition", did_you_mean(word, CONDITIONS))
        found.append(known)
    return list(dict.fromkeys(found)) or ["on_success"]


_CONDITIONS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"enum": [*CONDITIONS]}}
_DEPENDS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"task": {"type": "string"}, "conditions": _CONDITIONS_SCHEMA},
            "required": ["task"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "additionalProperties": {"anyOf": [{"enum": [*CONDITIONS]}, _CONDITIONS_SCHEMA]},
            "minProperties": 1,
            "maxProperties": 1,
        },
    ],
    "examples": ["build", {"build": ["on_failure"]}, {"task": "build", "conditions": ["always"]}],
}
DependencyOf = Annotated[Dependency, PlainValidator(_dependency), WithJsonSchema(_DEPENDS_SCHEMA)]
Depends = Annotated[list[DependencyOf], BeforeValidator(_many), values.Or((values.STRING,))]
