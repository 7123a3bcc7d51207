"""The small values of a run file, as annotated types: texts, counts, durations, quantities, environments.

Each is one function that takes what was read and returns what the plan holds, or says in one sentence what
is wrong and in one hint what to write. pydantic's own unions and coercions are not used for them: their
errors name every branch of the union, and they take "yes" for true.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, JsonValue, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError

from runyard.spec.plan import FromOutput, FromSecret, Value
from runyard.spec.tree import Written, clip, did_you_mean

NAME_LENGTH = 100

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DURATION = re.compile(r"[-+]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+|[-+]?0")
_DURATION_PART = re.compile(r"([0-9]*\.?[0-9]*)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = (2**63 - 1) / 1e9
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|[kKMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?")
_SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "K": 1e3} | {
    letter + i: (1024.0 if i else 1000.0) ** power
    for power, letter in enumerate("KMGTPE", start=1)
    for i in ("", "i")
}


def wrong(sentence: str, hint: str = "") -> PydanticCustomError:
    """The error of a value: raised inside a validator, it becomes a Problem at the value's place."""
    return PydanticCustomError("runyard", "{sentence}", {"sentence": sentence, "hint": hint})


def kind(value: object) -> str:
    """What a value is, in the user's words."""
    if value is None:
        return "nothing"
    if isinstance(value, Written):
        return "a boolean" if isinstance(value.value, bool) else "a number"
    if isinstance(value, dict | list | str):
        return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a text"
    return type(value).__name__


def native(value: object) -> JsonValue:
    """The JSON that was meant: numbers and booleans as such."""
    if isinstance(value, Written):
        return value.value
    if isinstance(value, dict):
        return {str(key): native(each) for key, each in value.items()}
    if isinstance(value, list):
        return [native(each) for each in value]
    return None if value is None else str(value)


def native_mapping(value: object) -> JsonValue:
    if not isinstance(value, dict):
        raise wrong(f"a mapping is wanted here, not {kind(value)}")
    return native(value)


def text(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    raise wrong(f"a text is wanted here, not {kind(value)}", 'write "" for an empty text' if value is None else "")


def filled(value: object) -> str:
    words = text(value)
    if not words.strip():
        raise wrong("a text is wanted here, and it is empty")
    return words


def name(value: object) -> str:
    """1 to 100 printable characters of any script on one line, without blanks around them."""
    words = filled(value)
    if len(words) > NAME_LENGTH:
        raise wrong(f"a name has at most {NAME_LENGTH} characters, this has {len(words):,}")
    if bad := next((c for c in words if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI), ""):
        raise wrong(
            f"a name cannot contain the character U+{ord(bad):04X}", "names are one line of printable text"
        )
    if words != words.strip():
        raise wrong("a name cannot begin or end with a blank")
    return words


def flag(value: object) -> bool:
    if isinstance(value, Written) and isinstance(value.value, bool):
        return value.value
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    raise wrong(f"true or false is wanted here, not {kind(value)}", "write true or false")


def whole(value: object) -> int:
    """A whole number; a text of digits counts as one, since a matrix can only put in texts."""
    number = value.value if isinstance(value, Written) else value
    if isinstance(number, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", number):
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise wrong(f"a whole number is wanted here, not {kind(value)}")


def between(low: int, high: int) -> Callable[[object], int]:
    def count(value: object) -> int:
        number = whole(value)
        if not low <= number <= high:
            raise wrong(f"a whole number from {low:,} to {high:,} is wanted here")
        return number

    return count


def decimal(value: object) -> float:
    number = value.value if isinstance(value, Written) else value
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", number):
        number = float(number)
    if isinstance(number, int | float) and not isinstance(number, bool) and 1 <= number <= 1_000:
        return float(number)
    raise wrong("a number from 1 to 1,000 is wanted here")


def duration(value: object) -> float:
    """Seconds, from Go's notation (``1h30m``, ``90s``, ``500ms``) or from whole nanoseconds, as agola has it."""
    hint = "write it like 90s, 5m or 1h30m"
    if isinstance(value, Written) and not isinstance(value.value, bool):
        seconds = _nanoseconds(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value))
        seconds = -seconds if value.startswith("-") else seconds
    else:
        raise wrong("a duration is wanted here", hint)
    if seconds < 0:
        raise wrong("a duration cannot be negative", hint)
    if seconds > _LONGEST_S:
        raise wrong("a duration of more than 290 years is not possible", hint)
    return seconds


def _nanoseconds(value: Written) -> float:
    if not isinstance(value.value, int):
        raise wrong("a duration without a unit is whole nanoseconds", f"write {value}s for seconds")
    if 0 < abs(value.value) < 1_000_000:
        raise wrong("a duration without a unit is in nanoseconds", f"write {value}s for seconds")
    return value.value / 1e9


def positive_duration(value: object) -> float:
    seconds = duration(value)
    if not seconds:
        raise wrong("a duration of more than 0 is wanted here")
    return seconds


def quantity(value: object) -> float:
    """``500m``, ``2``, ``1.5``, ``512Mi``, ``10G``, ``1e9``: Kubernetes' notation."""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) <= 40 else None
    if not found:
        raise wrong("a quantity is wanted here", "write it like 500m, 2, 512Mi or 10G")
    number, suffix = float(found[1]), found[2] or ""
    factor = _SUFFIXES[suffix] if suffix in _SUFFIXES else 10.0 ** int(suffix[1:])
    if not 0 < number * factor < 1e18:
        raise wrong("a quantity of more than 0 is wanted here" if not number else "this quantity is too large")
    return number * factor


def size(value: object) -> int:
    """Whole bytes."""
    size_bytes = quantity(value)
    if size_bytes < 1:
        raise wrong("this is less than one byte", "write it like 512Mi or 10G")
    return int(size_bytes)


def value_of(value: object) -> Value:
    """A text, or where the text comes from: a secret or another task's output."""
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, dict):
        hint = 'write "" for an empty text' if value is None else "write a text or {from_secret: NAME}"
        raise wrong(f"a text is wanted here, not {kind(value)}", hint)
    known = ["from_secret", "from_variable", "from_output"]
    if len(value) != 1 or next(iter(value)) not in known:
        stray = next((key for key in value if key not in known), "")
        raise wrong(
            f"`{clip(stray)}` is not a source of a value" if stray else "a value has exactly one source",
            did_you_mean(stray, known),
        )
    source, of = next(iter(value.items()))
    if source == "from_output":
        return FromOutput(from_output=_output(of))
    return FromSecret(from_secret=_secret(of))


def _output(value: object) -> str:
    words = filled(value)
    task, _, key = words.rpartition(".")
    if not task or not _ENV_NAME.fullmatch(key):
        raise wrong("an output is named TASK.KEY", "the part after the last dot is the key, like build.VERSION")
    return words


def _secret(value: object) -> str:
    words = filled(value)
    if not re.fullmatch(r"[A-Za-z0-9_][-A-Za-z0-9._/]{0,252}", words):
        raise wrong("a secret's name has letters, digits and - _ . / only, at most 253")
    return words


def is_env_name(words: str) -> bool:
    return _ENV_NAME.fullmatch(words) is not None


def env_name(value: object) -> str:
    words = text(value)
    if not is_env_name(words):
        raise wrong(
            f"`{clip(words)}` cannot be the name of a variable", "use letters, digits and _; no digit first"
        )
    return words


def words(value: object, *, most: int = 10_000) -> list[object]:
    """One or a list of them, as a list."""
    if isinstance(value, list):
        return bounded(value, most=most)
    if isinstance(value, str):
        return [value]
    raise wrong(f"a text or a list of texts is wanted here, not {kind(value)}")


def bounded(value: list[object], *, most: int) -> list[object]:
    """The list, if it is not longer than anybody needs: judging each item of a senseless one takes minutes."""
    if len(value) > most:
        raise wrong(f"at most {most:,} are possible here, these are {len(value):,}")
    return value


@dataclass(frozen=True, eq=False)  # hashed by identity: Python 3.11 hashes annotations, and dicts have no hash
class Or:
    """Annotation: in the JSON Schema, one of these shapes is as good as the type's own."""

    shapes: tuple[dict[str, Any], ...]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [*self.shapes, handler(core)]}


def schema_of(kinds: list[str], description: str = "", **more: Any) -> WithJsonSchema:
    schema: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0], **more}
    return WithJsonSchema(schema | ({"description": description} if description else {}))


_SCALAR = ["string", "number", "boolean"]
_DURATION_WORDS = "A duration: `90s`, `5m`, `1h30m`, or whole nanoseconds"
_QUANTITY_WORDS = "A quantity in Kubernetes' notation"

STRING: dict[str, Any] = {"type": "string"}
SCALAR: dict[str, Any] = {"type": _SCALAR}
STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}

Text = Annotated[str, PlainValidator(text), schema_of(_SCALAR)]
Filled = Annotated[str, PlainValidator(filled), schema_of(_SCALAR, minLength=1)]
Name = Annotated[str, PlainValidator(name), schema_of(_SCALAR, minLength=1, maxLength=NAME_LENGTH)]
Flag = Annotated[bool, PlainValidator(flag), schema_of(["boolean"])]
Count = Annotated[int, PlainValidator(between(0, 1_000)), schema_of(["integer"], minimum=0, maximum=1_000)]
Positive = Annotated[int, PlainValidator(between(1, 100_000)), schema_of(["integer"], minimum=1, maximum=100_000)]
Port = Annotated[int, PlainValidator(between(1, 65_535)), schema_of(["integer"], minimum=1, maximum=65_535)]
Factor = Annotated[float, PlainValidator(decimal), schema_of(["number"], minimum=1, maximum=1_000)]
Duration = Annotated[
    float, PlainValidator(duration), schema_of(["string", "integer"], _DURATION_WORDS, examples=["5m", "1h30m"])
]
PositiveDuration = Annotated[
    float,
    PlainValidator(positive_duration),
    schema_of(["string", "integer"], _DURATION_WORDS, examples=["5m", "1h30m"]),
]
Cores = Annotated[
    float,
    PlainValidator(quantity),
    schema_of(["string", "number"], _QUANTITY_WORDS, examples=["500m", 2]),
]
Size = Annotated[
    int,
    PlainValidator(size),
    schema_of(["string", "integer"], _QUANTITY_WORDS, examples=["512Mi", "10G"]),
]
_VALUE_SCHEMA: dict[str, Any] = {
    "description": "A text, the name of a secret, or an output `TASK.KEY` of an earlier task",
    "anyOf": [
        {"type": _SCALAR},
        *(
            {
                "type": "object",
                "properties": {source: {"type": "string"}},
                "required": [source],
                "additionalProperties": False,
            }
            for source in ("from_secret", "from_variable", "from_output")
        ),
    ],
    "examples": ["release", {"from_secret": "deploy-token"}, {"from_output": "build.VERSION"}],
}
Sourced = Annotated[Value, PlainValidator(value_of), WithJsonSchema(_VALUE_SCHEMA)]
EnvName = Annotated[str, PlainValidator(env_name), schema_of(["string"], pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
_VARIABLES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    "additionalProperties": _VALUE_SCHEMA,
}
Variables = Annotated[dict[EnvName, Sourced], WithJsonSchema(_VARIABLES_SCHEMA)]
