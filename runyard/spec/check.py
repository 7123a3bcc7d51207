"""The rules that span tasks: names, dependencies, cycles, outputs.

They are checked on whatever could be read of each task, so that a task with a wrong timeout still shows a
wrong name in its `depends`. agola also refuses a task that depends on X and on a parent that itself depends
on X; it is harmless and people write it, so it is accepted here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from runyard.spec.complaints import Complaints
from runyard.spec.plan import Condition, FromOutput
from runyard.spec.tree import Path, clip

MAX_EDGES = 200_000
_CYCLES_SHOWN = 10
_LINKS_SHOWN = 8


@dataclass
class Wish:
    """One entry of a task's `depends`, as written, and where."""

    path: Path
    task: str
    conditions: list[Condition]


@dataclass
class Candidate:
    """What is known of a task before it is sure to be valid."""

    path: Path
    name: str
    base: str = ""
    wishes: list[Wish] = field(default_factory=list)
    outputs: list[str] | None = None  # declared ones
    reads: list[tuple[Path, FromOutput]] = field(default_factory=list)


Depends = dict[str, dict[str, list[Condition]]]


def check(candidates: Sequence[Candidate], run: Path, complaints: Complaints) -> tuple[Depends, list[str]]:
    """Dependencies by task, and the names in an order in which parents come first. Complains of the rest."""
    by_name = _unique(candidates, complaints)
    depends = _resolve(candidates, by_name, run, complaints)
    order = _ordered(by_name, depends, complaints)
    _check_reads(by_name, depends, order, complaints)
    return depends, order


def _unique(candidates: Sequence[Candidate], complaints: Complaints) -> dict[str, Candidate]:
    by_name: dict[str, Candidate] = {}
    bases: dict[str, Path] = {}
    for each in candidates:
        if each.name in by_name:
            complaints.add(
                (*each.path, "name"), f"there are two tasks of the name `{clip(each.name)}`", hint="rename one"
            )
            continue
        by_name[each.name] = each
        if each.base and bases.setdefault(each.base, each.path) != each.path:
            complaints.add(
                (*each.path, "name"), f"there are two matrices of the name `{clip(each.base)}`", hint="rename one"
            )
    for base, path in bases.items():
        if base in by_name and by_name[base].path != path:
            place = (*by_name[base].path, "name")
            complaints.add(place, f"there is a matrix of the name `{clip(base)}`", hint="rename one of the two")
    return by_name


def _resolve(
    candidates: Sequence[Candidate], by_name: Mapping[str, Candidate], run: Path, complaints: Complaints
) -> Depends:
    instances: dict[str, list[str]] = {}
    for name, task in by_name.items():
        if task.base and task.base not in by_name:
            instances.setdefault(task.base, []).append(name)
    depends: Depends = {}
    edges = 0
    for task in candidates:
        parents: dict[str, list[Condition]] = {}
        for wish in task.wishes:
            meant = [wish.task] if wish.task in by_name else instances.get(wish.task, [])
            edges += len(meant)
            if edges > MAX_EDGES:
                complaints.add(run, f"a run has at most {MAX_EDGES:,} dependencies", hint="put a task in between")
                return {name: {} for name in by_name}
            if not meant:
                hint = complaints.near(wish.task, [*by_name, *instances], what="the tasks are")
                complaints.add(wish.path, f"there is no task `{clip(wish.task)}`", hint=hint, text=wish.task)
            for parent in meant:
                if parent in parents:
                    complaints.add(
                        wish.path,
                        f"`{clip(parent)}` is there twice",
                        hint="list all conditions in one",
                        text=wish.task,
                    )
                parents[parent] = wish.conditions
        depends.setdefault(task.name, parents)
    return depends


def _ordered(by_name: Mapping[str, Candidate], depends: Depends, complaints: Complaints) -> list[str]:
    """Parents first, else as written. Tasks in or behind a cycle are left out, and each cycle is named."""
    order = topological(depends)
    cycles = 0
    stuck = {name: None for name in depends if name not in set(order)} if len(order) < len(depends) else {}
    while stuck and cycles < _CYCLES_SHOWN:
        cycle = _find_cycle(stuck, depends)
        cycles += 1
        first = by_name[cycle[0]]
        wish = next((each for each in first.wishes if each.task in (cycle[1], by_name[cycle[1]].base)), None)
        where = wish.path if wish else first.path
        alone = len(cycle) == 2
        what = "the task waits for itself" if alone else "the tasks wait for each other"
        hint = "remove this dependency" if alone else "remove one of these dependencies"
        complaints.add(where, f"{what}: {_chain(cycle)}", hint=hint)
        rest = {
            name: {p: c for p, c in depends[name].items() if p in stuck and p not in cycle}
            for name in stuck
            if name not in cycle
        }
        done = set(topological(rest))
        stuck = {name: None for name in rest if name not in done}
    return order


def topological(depends: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Parents first, as near to the order given as that allows. Cycles and what is behind them are left out."""
    names = list(depends)
    position = {name: at for at, name in enumerate(names)}
    waits = {name: len(parents) for name, parents in depends.items()}
    children: dict[str, list[str]] = {name: [] for name in depends}
    for name, parents in depends.items():
        for parent in parents:
            children[parent].append(name)
    free = [position[name] for name in depends if not waits[name]]
    order: list[str] = []
    while free:
        name = names[heappop(free)]
        order.append(name)
        for child in children[name]:
            waits[child] -= 1
            if not waits[child]:
                heappush(free, position[child])
    return order


def _find_cycle(stuck: Mapping[str, object], depends: Depends) -> list[str]:
    """Every stuck task has a stuck parent: walking up must come back to a task that was seen."""
    seen: dict[str, int] = {}
    walk: list[str] = []
    name = next(iter(stuck))
    while name not in seen:
        seen[name] = len(walk)
        walk.append(name)
        name = next(parent for parent in depends[name] if parent in stuck)
    cycle = walk[seen[name] :]
    position = {each: at for at, each in enumerate(depends)}
    first = cycle.index(min(cycle, key=position.__getitem__))
    return [*cycle[first:], *cycle[:first], cycle[first]]


def _chain(cycle: list[str]) -> str:
    names = [clip(name) for name in cycle]
    if len(names) > _LINKS_SHOWN + 2:
        names = [*names[:_LINKS_SHOWN], f"({len(names) - _LINKS_SHOWN - 1:,} more)", names[-1]]
    return " → ".join(names)


def _check_reads(
    by_name: Mapping[str, Candidate], depends: Depends, order: list[str], complaints: Complaints
) -> None:
    ancestors: dict[str, int] | None = None
    bit = {name: 1 << at for at, name in enumerate(order)} if any(t.reads for t in by_name.values()) else {}
    for name, task in by_name.items():
        for where, read in task.reads:
            if read.task not in by_name:
                hint = complaints.near(read.task, [*by_name], what="the tasks are")
                complaints.add(where, f"there is no task `{clip(read.task)}` to take an output from", hint=hint)
                continue
            if read.task == name:
                complaints.add(
                    where, "a task cannot read an output of its own", hint="use a file or a shell variable"
                )
                continue
            _check_key(by_name[read.task], read, where, complaints)
            if read.task in depends[name] or name not in bit or read.task not in bit:
                continue
            ancestors = ancestors or _ancestors(order, depends, bit)
            if not ancestors[name] & bit[read.task]:
                hint = f"add `{clip(read.task)}` to `depends`"
                complaints.add(where, f"`{clip(read.task)}` need not have ended when this task starts", hint=hint)


def _check_key(task: Candidate, read: FromOutput, where: Path, complaints: Complaints) -> None:
    if task.outputs is not None and read.key not in task.outputs:
        hint = complaints.near(read.key, task.outputs, what="its outputs are")
        complaints.add(where, f"the task `{clip(task.name)}` declares no output `{clip(read.key)}`", hint=hint)


def _ancestors(order: list[str], depends: Depends, bit: Mapping[str, int]) -> dict[str, int]:
    """For each task the set of its ancestors, as bits: 10,000 tasks are 12 MB of them."""
    above: dict[str, int] = {}
    for name in order:
        bits = 0
        for parent in depends[name]:
            bits |= above[parent] | bit[parent]
        above[name] = bits
    return above


def closure(wanted: Iterable[str], depends: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """The wanted tasks and all that they need."""
    seen: set[str] = set()
    rest = list(wanted)
    while rest:
        name = rest.pop()
        if name not in seen:
            seen.add(name)
            yield name
            rest.extend(depends[name])
