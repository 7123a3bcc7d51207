"""A Document checked against the whole format: every run, every task, all problems at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue, ValidationError
from pydantic_core import PydanticCustomError

from runyard.errors import InvalidRunFile, Problem
from runyard.model import Model
from runyard.spec import source, values
from runyard.spec.check import Candidate, Depends, Wish, check
from runyard.spec.complaints import Complaints
from runyard.spec.depends import dependency
from runyard.spec.file import FileHead, RunHead, Task
from runyard.spec.matrix import Budget, Instance, expand
from runyard.spec.plan import FromOutput, Value
from runyard.spec.steps import RunStep
from runyard.spec.tree import Document, Path, clip
from runyard.spec.when import Commit

_SHARED = ("runtime", "steps")
M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class ParsedTask:
    """A valid task of a valid run; ``path`` is where it is written, also for an instance of a matrix."""

    name: str
    path: Path
    model: Task
    instance: Instance


@dataclass(frozen=True)
class ParsedRun:
    """``order`` has parents first, else the order of the file."""

    head: RunHead
    path: Path
    tasks: dict[str, ParsedTask]
    depends: Depends
    order: list[str]


@dataclass(frozen=True)
class ParsedFile:
    document: Document
    head: FileHead
    runs: list[ParsedRun]


def parse(file: str | dict[str, JsonValue], *, name: str, ctx: dict[str, JsonValue] | None = None) -> ParsedFile:
    """The whole file, valid. Raises InvalidRunFile with all its problems."""
    document = source.read(file, name=name, ctx=ctx)
    complaints = Complaints(document)
    data = {key: each for key, each in _mapping(document.root.data).items() if not key.startswith("x-")}
    head = _read(FileHead, _without(data, "runs"), (), complaints)
    runs = list(_runs(data, complaints))
    complaints.raise_if_any()
    if head is None:
        raise AssertionError("a head that is not valid has been complained of")
    return ParsedFile(document, head, [run for run in runs if run])


class _Shared:
    """Parts that tasks repeat by alias: read once. Known by identity, and kept so that it stays theirs."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[object, object]] = {}

    def known(self, task: object) -> object:
        if not isinstance(task, dict):
            return task
        found = {key: self._read[id(task[key])][1] for key in _SHARED if id(task.get(key)) in self._read}
        return {**task, **found}

    def learn(self, task: object, model: Task | None) -> None:
        if model and isinstance(task, dict):
            for key in _SHARED:
                if isinstance(task.get(key), dict | list):
                    self._read.setdefault(id(task[key]), (task[key], getattr(model, key)))


def _runs(data: dict[str, object], complaints: Complaints) -> Iterator[ParsedRun | None]:
    runs = data.get("runs")
    if "runs" not in data:
        complaints.add((), "`runs` is missing", hint="`runyard schema` describes the format")
    elif not isinstance(runs, list) or not runs:
        complaints.add(
            ("runs",), "`runs` is a list with at least one run", hint="write runs: [{name: …, tasks: […]}]"
        )
    budget = Budget()
    names: set[str] = set()
    for index, run in enumerate(runs if isinstance(runs, list) else []):
        path: Path = ("runs", index)
        yield _run(run, path, complaints, budget)
        name = run.get("name") if isinstance(run, dict) else None
        if isinstance(name, str) and name in names:
            complaints.add((*path, "name"), f"there are two runs of the name `{clip(name)}`", hint="rename one")
        names.add(str(name))


def _run(data: object, path: Path, complaints: Complaints, budget: Budget) -> ParsedRun | None:
    if not isinstance(data, dict):
        complaints.add(path, f"a run is a mapping with `name` and `tasks`, not {values.kind(data)}")
        return None
    head = _read(RunHead, _without(data, "tasks"), path, complaints)
    raw = data.get("tasks")
    if not isinstance(raw, list) or not raw:
        where = (*path, "tasks") if "tasks" in data else path
        complaints.add(where, "a run needs a list `tasks` with at least one task")
        return None
    tasks: dict[str, ParsedTask] = {}
    shared = _Shared()
    candidates: list[Candidate] = []
    for instance in expand(raw, (*path, "tasks"), complaints, budget):
        if complaints.enough:
            break
        model = None
        if not instance.broken:
            model = _read(Task, shared.known(instance.raw), instance.path, complaints)
            shared.learn(instance.raw, model)
        candidate = _candidate(instance, model, complaints)
        if candidate:
            candidates.append(candidate)
        if model:
            tasks.setdefault(model.name, ParsedTask(model.name, instance.path, model, instance))
    depends, order = check(candidates, path, complaints)
    return ParsedRun(head, path, tasks, depends, order) if head else None


def _read(model: type[M], data: object, path: Path, complaints: Complaints) -> M | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complaints.add_validation(path, error)
        return None


def _candidate(instance: Instance, model: Task | None, complaints: Complaints) -> Candidate | None:
    """What the rules between tasks can use of this one, even if it is not valid."""
    raw = instance.raw
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        return None
    path = instance.path
    name, base, listed = str(raw["name"]), instance.base, isinstance(raw.get("depends"), list)
    if model is None:
        wishes = [
            each for each in _wishes(raw.get("depends"), path) if not (instance.broken and "{{" in each.task)
        ]
        return Candidate(path, name, base, wishes)
    places = ((*path, "depends", index) if listed else (*path, "depends") for index in range(len(model.depends)))
    wishes = [Wish(at, each.task, each.conditions) for at, each in zip(places, model.depends, strict=True)]
    return Candidate(path, name, base, wishes, model.outputs, list(_reads(model, path)))


def _wishes(raw: object, path: Path) -> Iterator[Wish]:
    """The dependencies that can be read; the others have been complained of by the model."""
    if isinstance(raw, str):
        yield Wish((*path, "depends"), str(raw), ["on_success"])
    for index, each in enumerate(raw if isinstance(raw, list) else []):
        try:
            task, conditions = dependency(each)
        except PydanticCustomError:
            continue
        yield Wish((*path, "depends", index), task, conditions)


def _reads(task: Task, path: Path) -> Iterator[tuple[Path, FromOutput]]:
    environments: list[tuple[Path, dict[str, Value]]] = [((), task.environment)]
    environments += [
        (("runtime", "containers", index), each.environment) for index, each in enumerate(task.runtime.containers)
    ]
    environments += [
        (("steps", index, "run"), each.environment)
        for index, each in enumerate(task.steps)
        if isinstance(each, RunStep)
    ]
    for where, environment in environments:
        for key, value in environment.items():
            if isinstance(value, FromOutput):
                yield (*path, *where, "environment", key), value


def _mapping(data: object) -> dict[str, object]:
    return data if isinstance(data, dict) else {}


def _without(data: dict[str, object], key: str) -> dict[str, object]:
    return {name: each for name, each in data.items() if name != key}


def lint(file: str | dict[str, JsonValue], *, name: str) -> list[Problem]:
    """All problems of all runs in the order of the file, at most 50 and a last one that counts the others.

    A Jsonnet program is evaluated with a ``ctx`` of empty texts.
    """
    try:
        parse(file, name=name, ctx=Commit().ctx())
    except InvalidRunFile as error:
        return list(error.problems)
    return []
