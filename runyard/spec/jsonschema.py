"""The JSON Schema of the run file, for editors and other programs (draft 2020-12).

It is made from the models, which know one spelling of each step; the others are added here. It is as strict
as a schema can be: what spans tasks is `runyard lint`'s.
"""

from typing import Any

from pydantic import JsonValue
from pydantic.json_schema import GenerateJsonSchema

from runyard.spec import values
from runyard.spec.file import RunFile
from runyard.spec.steps import ALONE, KINDS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_Schema = dict[str, Any]


class _WithoutTitles(GenerateJsonSchema):
    """Titles that only repeat the key are noise in an editor."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, JsonValue]:
    """The schema as a new object, ready for `json.dumps`."""
    made: _Schema = RunFile.model_json_schema(schema_generator=_WithoutTitles)
    task = made["$defs"]["Task"]["properties"]
    task["steps"]["items"] = {"$ref": "#/$defs/Step"}
    made["$defs"]["Step"] = _step(made["$defs"])
    made["patternProperties"] = {"^x-": {"description": "Yours, for anchors"}}
    made["examples"] = [_EXAMPLE]
    return {"$schema": _DIALECT, "title": "Run file of Runyard", **{k: v for k, v in made.items() if k != "title"}}


def _step(definitions: _Schema) -> _Schema:
    """Every spelling of every step."""
    kinds = {each["properties"]["type"].get("const"): each for each in definitions.values() if _has_type(each)}
    models = [kinds[kind] for kind in KINDS]
    spellings: list[_Schema] = [{"enum": list(ALONE), "description": "A step that needs nothing more"}]
    for model in models:
        kind = model["properties"]["type"]["const"]
        inner = {key: each for key, each in model["properties"].items() if key != "type"}
        required = [key for key in model.get("required", []) if key != "type"]
        body: _Schema = {
            "type": "object",
            "properties": inner,
            "required": required,
            "additionalProperties": False,
        }
        bodies = [body] if required else [body, {"type": "null"}]
        about = {"description": model.get("description", "")}
        spellings.append(about | _keyed(kind, {"anyOf": bodies}, {}))
        if kind == "run":
            beside = {key: each for key, each in inner.items() if key != "command"}
            spellings.append(about | _keyed(kind, values.STRING, beside))
        spellings.append(model)
    for name in [name for name, each in definitions.items() if each in models]:
        del definitions[name]
    return {"anyOf": spellings, "examples": ["clone", {"run": "make test"}]}


def _has_type(definition: _Schema) -> bool:
    return "type" in definition.get("properties", {})


def _keyed(kind: str, value: _Schema, beside: _Schema) -> _Schema:
    properties = {kind: value, **beside}
    return {"type": "object", "properties": properties, "required": [kind], "additionalProperties": False}


_EXAMPLE: _Schema = {
    "runs": [
        {
            "name": "build",
            "tasks": [
                {
                    "name": "test",
                    "runtime": {"containers": [{"image": "python:3.13"}]},
                    "steps": ["clone", {"run": "make test"}],
                }
            ],
        }
    ]
}
