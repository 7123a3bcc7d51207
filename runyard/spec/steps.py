"""Steps as users write them, in every spelling that agola and people use.

- clone                                   a word, for kinds that need nothing
- clone: {depth: 1}                       the kind as the key
- {type: clone, depth: 1}                 the kind as `type`
- run: make test                          the command as the value…
- {run: make test, name: tests}           …with the other keys beside it
"""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from runyard.model import Input
from runyard.spec import values
from runyard.spec.tree import clip, did_you_mean
from runyard.spec.values import Filled, Flag, Name, PositiveDuration, Text, Variables
from runyard.spec.when import STEP_WORDS, StepCondition, step_condition

KINDS = ("clone", "run", "save_to_workspace", "restore_workspace", "save_cache", "restore_cache")
ALONE = ("clone", "restore_workspace")

_CALL = re.compile(
    r"""-?\s*((md5sum|sha256sum|env)\s+("([^"\\]|\\.)*"|`[^`]*`)|os|arch|unixtime|year|month|day)\s*-?""",
    re.DOTALL,
)
"""What `{{ … }}` in a cache key may call; `runyard.agent.render_key` does."""


def _condition(value: object) -> object:
    if isinstance(value, str) and value not in STEP_WORDS:
        raise values.wrong("this is not a condition of a step", did_you_mean(value, STEP_WORDS))
    return step_condition(value)


def _glob(value: object) -> str:
    glob = values.filled(value)
    if glob.startswith("/") or ".." in glob.split("/"):
        raise values.wrong("a path to pack is relative and has no `..`", "name its folder in `source_dir`")
    plain = re.sub(r"\\.", "", glob)
    if plain.count("[") != plain.count("]") or plain.count("{") != plain.count("}"):
        raise values.wrong("a bracket of this pattern is not closed", "write \\[ or \\{ for the character itself")
    return glob


def _key(value: object) -> str:
    """A cache key whose calls the agent can read: one that it cannot is said there, and fails nothing for ever."""
    words = values.filled(value)
    for call in re.findall(r"\{\{(.*?)\}\}", words, re.DOTALL):
        if not _CALL.fullmatch(call):
            raise values.wrong(
                f"`{clip(call.strip())}` is not known in a cache key",
                'write {{ md5sum "go.sum" }}; others are sha256sum, env, os, arch, unixtime, year, month, day',
            )
    return words


def _globs(value: object) -> list[object]:
    return values.words(value, most=1_000)


def _place_inside(value: object) -> str:
    """A folder inside an archive. agola's users write `/bin/` for it: the same as `bin`."""
    parts = [part for part in values.filled(value).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise values.wrong("a folder inside an archive has no `..`")
    return "/".join(parts) or "."


Glob = Annotated[str, values.PlainValidator(_glob), values.schema_of(["string"], "A doublestar pattern")]
Globs = Annotated[
    list[Glob],
    BeforeValidator(_globs),
    WithJsonSchema({"anyOf": [values.STRING, values.STRINGS]}),
]
Inside = Annotated[str, values.PlainValidator(_place_inside), values.schema_of(["string"])]
Key = Annotated[str, values.PlainValidator(_key), values.schema_of(["string"], minLength=1)]
Keys = Annotated[
    list[Key],
    BeforeValidator(values.words),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [values.STRING, values.STRINGS | {"minItems": 1}]}),
]
Condition = Annotated[StepCondition, BeforeValidator(_condition), values.Or(({"enum": list(STEP_WORDS)},))]


class Content(Input):
    """Files to pack."""

    source_dir: Filled = Field(".", description="Folder that `paths` are relative to; `~` is the home")
    dest_dir: Inside = Field(".", description="Folder inside the archive")
    paths: Globs = Field(["**"], description="Doublestar patterns below `source_dir`; everything by default")


class _Step(Input):
    name: Name | None = None
    when: Condition | None = None


class CloneStep(_Step):
    """Fetches the sources of the run into the working directory."""

    type: Literal["clone"]
    depth: values.Positive | None = Field(None, description="Commits of history; all by default")
    recurse_submodules: Flag = False


class RunStep(_Step):
    """Runs a command with the task's shell."""

    type: Literal["run"]
    command: Filled
    name: Text | None = None
    environment: Variables = {}
    working_dir: Filled | None = None
    shell: Filled | None = None
    timeout: PositiveDuration | None = Field(None, description="Outranks the task's `timeouts: {step: …}`")
    tty: Flag = False


class SaveToWorkspaceStep(_Step):
    """Packs files for the tasks that depend on this one."""

    type: Literal["save_to_workspace"]
    contents: list[Content]


class RestoreWorkspaceStep(_Step):
    """Unpacks what the tasks that this one depends on have packed."""

    type: Literal["restore_workspace"]
    dest_dir: Filled = "."


class SaveCacheStep(_Step):
    """Packs files under a key for later runs, unless the key is there already."""

    type: Literal["save_cache"]
    key: Key = Field(examples=['pip-{{ md5sum "constraints.txt" }}'])
    contents: list[Content]


class RestoreCacheStep(_Step):
    """Unpacks the first cache that is found: of each key in turn the exact one, then the newest that begins so."""

    type: Literal["restore_cache"]
    keys: Keys
    dest_dir: Filled = "."


def one_spelling(value: object) -> object:
    """Every spelling as `{type: …, …}`; a step that has been read already stays."""
    if isinstance(value, Input):
        return value
    if isinstance(value, str):
        return _word(str(value))
    if not isinstance(value, dict):
        raise values.wrong(
            f"a step is wanted here, not {values.kind(value)}", "write `- run: make test` or `- clone`"
        )
    if "type" in value:
        if value["type"] not in KINDS:
            raise values.wrong(
                f"there is no step `{clip(str(value['type']))}`", did_you_mean(str(value["type"]), KINDS)
            )
        return value | {"type": str(value["type"])}
    found = [key for key in value if key in KINDS]
    if len(found) != 1:
        first = next(iter(value), "")
        what = "this step has two kinds" if found else f"there is no step `{clip(first)}`"
        raise values.wrong(
            what if value else "this step is empty", did_you_mean(first, KINDS) if not found else ""
        )
    return _keyed(found[0], value)


def _word(word: str) -> object:
    if word in ALONE:
        return {"type": word}
    if word in KINDS:
        raise values.wrong(f"the step `{word}` needs more than its name", f"write `- {word}: …`")
    raise values.wrong(
        f"there is no step `{clip(word)}`", did_you_mean(word, KINDS) or "write `- run: …` for a command"
    )


def _keyed(key: str, value: dict[str, object]) -> object:
    inner, beside = value[key], {name: each for name, each in value.items() if name != key}
    if key == "run" and isinstance(inner, str):
        return {"type": key, "command": inner, **beside}
    if inner is None:
        return {"type": key, **beside}
    if not isinstance(inner, dict):
        raise values.wrong(f"the step `{key}` takes a mapping, not {values.kind(inner)}")
    return {**beside, **inner, "type": key}


Kind = CloneStep | RunStep | SaveToWorkspaceStep | RestoreWorkspaceStep | SaveCacheStep | RestoreCacheStep
Step = Annotated[Annotated[Kind, Field(discriminator="type")], BeforeValidator(one_spelling)]


def _some(value: object) -> object:
    return values.bounded(value, most=1_000) if isinstance(value, list) else value


Steps = Annotated[list[Step], BeforeValidator(_some)]
