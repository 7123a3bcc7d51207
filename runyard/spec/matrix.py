"""`matrix`: one task written, many tasks meant.

It is expanded on what was read, before any model looks at it, so that `{{ matrix.NAME }}` works in every
text of a task: names, images, resources, keys of the environment. Only these braces are ours; those of cache
keys (`{{ md5sum "x" }}`) stay. The combinations are the product of the lists, in the order in which they are
written, without those that an `exclude` describes, and with each `include` as it stands.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

from runyard.spec.complaints import Complaints
from runyard.spec.tree import MAX_CHARACTERS, MAX_NODES, Path, clip

MAX_TASKS = 10_000

_TEMPLATE = re.compile(r"\{\{\s*matrix\.([A-Za-z_][A-Za-z0-9_-]*)\s*\}\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MAX_ENTRIES = 1_000
_PARTS = ("include", "exclude")
Combination = dict[str, str]


@dataclass(frozen=True)
class Instance:
    """A task as it is to be validated. ``base`` is the name that all instances of a matrix share.

    ``broken``: its matrix is wrong and its templates have no values, so only its name can be relied on.
    """

    raw: object
    path: Path
    base: str = ""
    matrix: Mapping[str, str] = field(default_factory=dict)
    broken: bool = False


@dataclass
class Budget:
    """What the matrices of a file may still add to it."""

    nodes: int = MAX_NODES
    characters: int = MAX_CHARACTERS


def expand(tasks: list[object], path: Path, complaints: Complaints, budget: Budget) -> list[Instance]:
    """Every task of a run, each matrix by its combinations; where a matrix is wrong, its task as it stands."""
    instances: list[Instance] = []
    clean: set[int] = set()  # parts without any template, by identity: aliases are looked through once
    for index, task in enumerate(tasks):
        at = (*path, index)
        if not isinstance(task, dict) or "matrix" not in task:
            if complaints.document.templates:
                _refuse_templates(task, at, complaints, clean)
            instances.append(Instance(task, at))
        else:
            instances.extend(_instances(task, at, complaints, budget))
        if len(instances) > MAX_TASKS:
            complaints.add(at, f"a run has at most {MAX_TASKS:,} tasks, matrices included")
            return []
    return instances


def _refuse_templates(task: object, path: Path, complaints: Complaints, clean: set[int]) -> None:
    for where, name in _templates(task, path, clean):
        complaints.add(
            where, f"there is no matrix here for `{{{{ matrix.{name} }}}}`", hint="add `matrix` to the task"
        )


def _templates(value: object, path: Path, clean: set[int]) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        for found in _TEMPLATE.findall(value) if "matrix." in value else ():
            yield path, found
        return
    if not isinstance(value, dict | list) or id(value) in clean:
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    any_found = False
    for key, each in parts:
        inside = [*_templates(key, (*path, key), clean), *_templates(each, (*path, key), clean)]
        any_found = any_found or bool(inside)
        yield from inside
    if not any_found:
        clean.add(id(value))


def _instances(task: dict[str, object], path: Path, complaints: Complaints, budget: Budget) -> Iterator[Instance]:
    rest = {key: each for key, each in task.items() if key != "matrix"}
    used = list(_templates(rest, path, set()))
    combinations = _combinations(task["matrix"], (*path, "matrix"), complaints)
    known = list(dict.fromkeys(name for each in combinations for name in each))
    fits = combinations and _all_known(used, known, combinations, complaints)
    if not fits or not _afford(rest, used, combinations, (*path, "matrix"), complaints, budget):
        yield Instance(rest, path, broken=bool(used))
        return
    base = str(task["name"]) if isinstance(task.get("name"), str) else ""
    for combination in combinations:
        raw = _substitute(rest, combination)
        if base and isinstance(raw, dict) and raw["name"] == base:
            raw["name"] = f"{base} ({', '.join(combination.values())})"
        yield Instance(raw, path, base, combination)


def _afford(
    task: dict[str, object],
    used: list[tuple[Path, str]],
    combinations: list[Combination],
    path: Path,
    complaints: Complaints,
    budget: Budget,
) -> bool:
    nodes, characters = _measure(task)
    characters += len(used) * max(len(value) for each in combinations for value in each.values())
    budget.nodes -= nodes * len(combinations)
    budget.characters -= characters * len(combinations)
    if budget.nodes < 0 or budget.characters < 0:
        complaints.add(path, "this matrix makes more than a run file may hold", hint="make it smaller")
        return False
    return True


def _all_known(
    used: list[tuple[Path, str]], known: list[str], combinations: list[Combination], complaints: Complaints
) -> bool:
    lacking = {
        name: next((each for each in combinations if name not in each), None)
        for name in {name for _, name in used}
    }
    for where, name in used:
        if (combination := lacking[name]) is None:
            continue
        if name in known:
            which, hint = f" for ({', '.join(combination.values())})", "set it in every `include`"
        else:
            which, hint = "", complaints.near(name, known, what="the matrix has")
        complaints.add(where, f"the matrix has no `{clip(name)}`{which}", hint=hint)
    return all(combination is None for combination in lacking.values())


def _combinations(matrix: object, path: Path, complaints: Complaints) -> list[Combination]:
    """The combinations; none where something is wrong, which then has been said."""
    before = len(complaints.problems)
    if not isinstance(matrix, dict):
        complaints.add(path, "a mapping is wanted here", hint='write matrix: {python: ["3.12", "3.13"]}')
        return []
    axes = {
        key: _axis(key, values, (*path, key), complaints) for key, values in matrix.items() if key not in _PARTS
    }
    include, exclude = (_entries(matrix.get(part), (*path, part), complaints) for part in _PARTS)
    for index, entry in enumerate(exclude):
        for key in entry.keys() - axes.keys():
            complaints.add(
                (*path, "exclude", index, key),
                f"the matrix has no `{clip(key)}`",
                hint=complaints.near(key, [*axes]),
                key=True,
            )
    if axes and prod(len(values) for values in axes.values()) > MAX_TASKS:
        complaints.add(
            path, f"this matrix has more than {MAX_TASKS:,} combinations", hint="a run has at most as many tasks"
        )
    if len(complaints.problems) > before:
        return []
    crossed = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())] if axes else []
    kept = [each for each in crossed if not any(entry.items() <= each.items() for entry in exclude)]
    combinations = [*kept, *({**entry} for entry in include)]
    if not combinations:
        complaints.add(path, "this matrix has no combination", hint="give it values, or remove it")
    return combinations


def _axis(key: str, values: object, path: Path, complaints: Complaints) -> list[str]:
    if not _NAME.fullmatch(key):
        complaints.add(
            path,
            f"`{clip(key)}` cannot be the name of a matrix's values",
            hint="use letters, digits, - and _",
            key=True,
        )
    if not isinstance(values, list) or not values:
        complaints.add(path, f"`{clip(key)}` of a matrix is a list of values", hint=f"write {clip(key)}: [a, b]")
        return []
    seen: set[object] = set()
    for index, value in enumerate(values):
        if not isinstance(value, str):
            complaints.add((*path, index), "a value of a matrix is a text, a number or a boolean")
        elif value in seen:
            complaints.add((*path, index), "this value of the matrix is there twice", hint="remove one")
        seen.add(value if isinstance(value, str) else index)
    return [str(value) for value in values]


def _entries(entries: object, path: Path, complaints: Complaints) -> list[Combination]:
    if entries is None:
        return []
    if not isinstance(entries, list):
        complaints.add(path, f"`{path[-1]}` of a matrix is a list of mappings")
        return []
    if len(entries) > _MAX_ENTRIES:
        complaints.add(path, f"`{path[-1]}` of a matrix has at most {_MAX_ENTRIES:,} items")
        return []
    good: list[Combination] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and entry and all(isinstance(value, str) for value in entry.values()):
            good.append({str(key): str(value) for key, value in entry.items()})
        else:
            complaints.add((*path, index), f"an item of `{path[-1]}` is a mapping of names to texts")
    return good


def _measure(value: object) -> tuple[int, int]:
    """Values and characters in it."""
    nodes, characters, rest = 0, 0, [value]
    while rest:
        each = rest.pop()
        nodes += 1
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            rest.extend(each.values())
        elif isinstance(each, list):
            rest.extend(each)
    return nodes, characters


def _substitute(value: object, combination: Combination) -> object:
    if isinstance(value, str):
        return _TEMPLATE.sub(lambda found: combination[found[1]], value) if "matrix." in value else value
    if isinstance(value, dict):
        return {_substitute(key, combination): _substitute(each, combination) for key, each in value.items()}
    if isinstance(value, list):
        return [_substitute(each, combination) for each in value]
    return value
