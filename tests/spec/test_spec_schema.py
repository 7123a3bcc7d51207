"""The JSON Schema says what the parser says, as far as a schema can."""

import json
import re
from typing import Any

import pytest

from runyard.spec import lint, schema

SCHEMA: dict[str, Any] = json.loads(json.dumps(schema()))
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def fits(value: object, rule: dict[str, Any]) -> bool:
    """A small validator: the keywords that our schema uses, and a failure for any other."""
    checks = {
        "$ref": lambda ref: fits(value, SCHEMA["$defs"][ref.rpartition("/")[2]]),
        "type": lambda kinds: any(of_type(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        "enum": lambda words: value in words,
        "const": lambda word: value == word,
        "anyOf": lambda rules: any(fits(value, each) for each in rules),
        "oneOf": lambda rules: sum(fits(value, each) for each in rules) == 1,
        "required": lambda keys: not isinstance(value, dict) or value.keys() >= set(keys),
        "properties": lambda rules: fits_properties(value, rules),
        "additionalProperties": lambda other: fits_others(value, rule, other),
        "items": lambda each: not isinstance(value, list) or all(fits(item, each) for item in value),
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "maxLength": lambda most: not isinstance(value, str) or len(value) <= most,
        "minimum": lambda least: not isinstance(value, int | float) or value >= least,
        "maximum": lambda most: not isinstance(value, int | float) or value <= most,
        "minProperties": lambda least: not isinstance(value, dict) or len(value) >= least,
        "maxProperties": lambda most: not isinstance(value, dict) or len(value) <= most,
        "pattern": lambda pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
        "propertyNames": lambda each: not isinstance(value, dict) or all(fits(key, each) for key in value),
    }
    silent = {
        "description",
        "default",
        "examples",
        "title",
        "$schema",
        "$defs",
        "patternProperties",
        "discriminator",
    }
    assert rule.keys() <= checks.keys() | silent, rule.keys() - checks.keys() - silent
    return all(checks[key](rule[key]) for key in rule if key in checks)


def of_type(value: object, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def fits_properties(value: object, rules: dict[str, Any]) -> bool:
    return not isinstance(value, dict) or all(
        fits(value[key], each) for key, each in rules.items() if key in value
    )


def fits_others(value: object, rule: dict[str, Any], other: Any) -> bool:
    if not isinstance(value, dict):
        return True
    patterns = rule.get("patternProperties", {})
    others = [
        each
        for key, each in value.items()
        if key not in rule.get("properties", {}) and not any(re.search(pattern, key) for pattern in patterns)
    ]
    return all(fits(each, other) if isinstance(other, dict) else other for each in others)


def file(**task: Any) -> dict[str, Any]:
    given = {"name": "t", "runtime": {"containers": [{"image": "x"}]}} | task
    first = {"name": "a", "runtime": {"containers": [{"image": "x"}]}}
    return {"runs": [{"name": "r", "tasks": [first, given]}]}


GOOD: list[dict[str, Any]] = [
    {},
    {"steps": ["clone", {"clone": None}, {"clone": {"depth": 1}}, {"type": "clone", "recurse_submodules": True}]},
    {
        "steps": [
            {"run": "x"},
            {"run": "x", "name": "n"},
            {"run": {"command": "x"}},
            {"type": "run", "command": "x"},
        ]
    },
    {"steps": ["restore_workspace", {"restore_workspace": {"dest_dir": "/x"}}]},
    {"steps": [{"save_cache": {"key": "k", "contents": [{"source_dir": "~/.cache", "paths": "*"}]}}]},
    {"steps": [{"restore_cache": {"keys": "k"}}, {"type": "restore_cache", "keys": ["a", "b"]}]},
    {"steps": [{"run": "x", "when": "always"}, {"run": "x", "when": {"status": "on_failure", "tag": ["v1"]}}]},
    {"depends": "a"},
    {"depends": ["a"]},
    {"depends": [{"a": ["on_failure", "always"]}]},
    {"depends": [{"a": "always"}]},
    {"depends": [{"task": "a", "conditions": ["on_skipped"]}]},
    {"when": {"branch": "main", "tag": ["a", "/b/"], "ref": {"include": "x", "exclude": ["y"]}}},
    {"environment": {"A": "x", "B": 1, "C": True, "D": {"from_secret": "s"}, "E": {"from_variable": "v"}}},
    {"depends": ["a"], "environment": {"A": {"from_output": "a.K"}}},
    {"retry": 2},
    {"retry": {"limit": 2, "backoff": "5s", "on": ["lost", 137]}},
    {"retry": {"backoff": {"initial": "1s", "factor": 1.5, "max": "1m"}, "infra": 3}},
    {"approval": True},
    {"approval": {"approvers": 2, "allowed": ["x", "y"], "expires": "1h"}},
    {"timeouts": {"queue": "1h", "pending": 0, "run": "90s", "step": "1m"}},
    {"resources": {"cpu": 0.5, "memory": "1Gi", "disk": 1024}},
    {"matrix": {"a": [1, "x", True], "include": [{"a": "b"}], "exclude": [{"a": 1}]}},
    {"pod": {"node_selector": {"a": "b"}, "tolerations": [{"key": "x", "effect": "NoSchedule"}]}},
    {"pod": {"service_account": "s", "labels": {"a/b": "c"}, "annotations": {"a": "b"}, "runtime_class": "r"}},
    {"docker_registries_auth": {"x.io": {"username": "u", "password": {"from_secret": "p"}}}},
    {"task_timeout_interval": 60_000_000_000},
    {
        "runtime": {
            "arch": "arm64",
            "containers": [{"image": "x", "entrypoint": ["a"], "volumes": [{"path": "/x", "tmpfs": {}}]}],
        }
    },
    {"outputs": ["A"], "keep_failed_for": "5m", "ignore_failure": True, "user": "", "shell": "/bin/bash"},
]
BAD: list[dict[str, Any]] = [
    {"pod": {"nodeSelector": {"a": "b"}}},
    {"pod": {"tolerations": [{"key": "x", "operator": "exists"}]}},
    {"steps": ["run"]},
    {"steps": [{"rnu": "x"}]},
    {"steps": [{"run": {"comand": "x"}}]},
    {"steps": [{"run": "x", "nmae": "y"}]},
    {"steps": [{"type": "clone", "depth": 0}]},
    {"steps": [{"run": "x", "when": "on_sucess"}]},
    {"depends": [{"a": ["on_sucess"]}]},
    {"depends": [["a"]]},
    {"when": {"brnch": "x"}},
    {"environment": {"A": {"from_secre": "x"}}},
    {"environment": {"A": ["x"]}},
    {"environment": {"A-B": "x"}},
    {"retry": {"on": ["oom_kiled"]}},
    {"approval": "yes"},
    {"timeouts": {"total": "1h"}},
    {"runtime": {"containers": [{"imag": "x"}]}},
    {"runtime": {"type": "vm", "containers": [{"image": "x"}]}},
    {"matrix": {"a": []}},
    {"image": "x"},
    {"name": "x" * 101},
]


@pytest.mark.parametrize("task", GOOD, ids=[json.dumps(each)[:50] for each in GOOD])
def test_what_the_parser_takes_the_schema_takes(task: dict[str, Any]) -> None:
    assert [str(problem) for problem in lint(file(**task), name="f")] == []
    assert fits(file(**task), SCHEMA)


@pytest.mark.parametrize("task", BAD, ids=[json.dumps(each)[:50] for each in BAD])
def test_what_the_schema_can_refuse_it_does(task: dict[str, Any]) -> None:
    assert lint(file(**task), name="f")
    assert not fits(file(**task), SCHEMA)


def test_it_is_self_contained_and_of_the_draft_that_it_names() -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(SCHEMA)))
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {each.removeprefix("#/$defs/") for each in references} == SCHEMA["$defs"].keys()


def test_its_examples_are_valid() -> None:
    for example in SCHEMA["examples"]:
        assert lint(example, name="f") == []
        assert fits(example, SCHEMA)


def test_each_call_gives_an_object_of_its_own() -> None:
    schema().clear()
    assert schema()["$defs"]
