"""Which tasks may start, which are skipped, and how a run ends.

Pure bookkeeping: the caller takes what is ready and reports how each task ended. The rules:

* A task is ready when every parent has ended and each met at least one of the conditions that the task names
  for it: a success meets ``on_success``, a failure ``on_failure``, a skip ``on_skipped``, each of the three
  ``always``. A cancelled parent meets none. No condition named means ``on_success``.
* Otherwise it is skipped as soon as its last parent has ended, and its own children see a skipped parent.
* A ``skip`` node (its `when` does not match) is skipped at once, not when its parents have ended: nothing that
  they do can change it, and people should see it from the start.
* ``ignore_failure``: the task stays failed and its children still need ``on_failure``, but the run does not
  fail; nor does it where somebody cancels such a task.
* ``stop`` and, with ``fail_fast``, the first failure that is not ignored turn everything that has not started
  into cancelled, whatever its conditions ask for: an `on_failure` child of a run that people want to end, or
  want to fail fast, would only keep it open. What is in flight is the caller's to end.

All that it says follows from the nodes, the outcomes, what is in flight and whether the run was stopped. So
`restore` needs no history, and a restored graph behaves like the one that was left.

Work is counted, not searched for: each edge is looked at once when the graph is made and once when its parent
ends. `graphlib.TopologicalSorter` was turned down: it knows neither conditions nor skips, and its ready nodes
come in an order of its own. So was a fresh look at all tasks at every change, which is the obvious way and
takes minutes for ten thousand tasks; the tests keep it, as the reference.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from runyard.errors import Conflict, InvalidRequest, NotFound
from runyard.spec.plan import Condition

Outcome = Literal["success", "failed", "skipped", "cancelled"]
Count = Literal["success", "failed", "skipped", "cancelled", "waiting", "in_flight"]
Result = Literal["unknown", "success", "failed", "stopped"]

_MET: Final[Mapping[Outcome, Condition]] = {
    "success": "on_success",
    "failed": "on_failure",
    "skipped": "on_skipped",
}
_VERB: Final[Mapping[Outcome, str]] = {
    "success": "succeeded",
    "failed": "failed",
    "skipped": "was skipped",
    "cancelled": "was cancelled",
}
_DEFAULT: Final[Sequence[Condition]] = ("on_success",)
_SHOWN_OF_A_CYCLE: Final = 10


@dataclass(frozen=True)
class Node:
    """A task, as far as the graph cares. ``depends``: for each parent, the conditions of which one must be met."""

    name: str
    depends: Mapping[str, Sequence[Condition]] = field(default_factory=dict)
    skip: bool = False
    ignore_failure: bool = False


class Graph:
    """The tasks of a run, and how far it has come.

    Each task is waiting, then in flight (`take`), then has an outcome (`end`); some never start. Every list is
    in a defined order: two graphs that were told the same say the same.
    """

    def __init__(self, nodes: Iterable[Node], *, fail_fast: bool = False) -> None:
        """Raises InvalidRequest for two tasks of one name, an unknown parent, and a cycle, which it names."""
        self._nodes = list(nodes)
        self._index = _index(self._nodes)
        self._children = _children(self._nodes, self._index)
        self._rank = _ranks(self._nodes, self._index, self._children)
        self._fail_fast = fail_fast
        self._stopped = False
        self._missing = [len(node.depends) for node in self._nodes]  # parents that have not ended
        self._unmet = [False] * len(self._nodes)  # whether a parent ended as it should not
        self._ready = [i for i, missing in enumerate(self._missing) if not missing]  # a heap; may hold stale ones
        self._in_flight: dict[str, None] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._counts: dict[Outcome, int] = {"success": 0, "failed": 0, "skipped": 0, "cancelled": 0}
        self._blamed: dict[Outcome, list[int]] = {"failed": [], "cancelled": []}  # without what is ignored
        skips = [i for i, node in enumerate(self._nodes) if node.skip]
        for i in skips:
            self._record(i, "skipped")
        self._settle(skips)

    @classmethod
    def restore(
        cls,
        nodes: Iterable[Node],
        outcomes: Mapping[str, Outcome],
        in_flight: Sequence[str],
        *,
        fail_fast: bool,
        stopped: bool,
    ) -> "Graph":
        """The graph as it was when another had these ``outcomes``, in whatever order, and these tasks in flight.

        Skips and cancels that follow from them may be left out. Also the way to start with tasks that are kept
        from an earlier run. Raises, besides what the constructor does, NotFound for an unknown task and
        Conflict for one that cannot be as it is said to be.
        """
        graph = cls(nodes, fail_fast=fail_fast)
        for name in in_flight:
            graph._find(name)
            if name in outcomes or name in graph._outcomes:
                raise Conflict(f"task {name!r} cannot be in flight: it has ended")
            graph._in_flight[name] = None
        fresh = []
        for name, outcome in outcomes.items():
            i = graph._find(name)
            known = graph._outcomes.get(name)
            if known is None:
                graph._record(i, outcome)
                fresh.append(i)
            elif known != outcome:
                raise Conflict(
                    f"task {name!r} cannot have ended as {outcome}: it is {known} by its `when` or `depends`"
                )
        graph._stopped = stopped
        graph._settle(fresh)
        return graph

    # what happens

    def take(self, limit: int | None = None) -> list[str]:
        """Up to ``limit`` tasks that may start now, in the order of the file; from here on they are in flight."""
        taken: list[str] = []
        while self._ready and (limit is None or len(taken) < limit):
            name = self._nodes[heapq.heappop(self._ready)].name
            if name not in self._outcomes and name not in self._in_flight:
                self._in_flight[name] = None
                taken.append(name)
        return taken

    def end(self, name: str, outcome: Outcome) -> None:
        """A task has ended: one in flight, or one that never started (cancelled by hand, kept, ...).

        Skips that follow are resolved here and now. Raises NotFound for an unknown task and Conflict for one
        that has ended before.
        """
        i = self._find(name)
        if name in self._outcomes:
            raise Conflict(f"task {name!r} has ended already: {self._outcomes[name]}")
        self._in_flight.pop(name, None)
        self._record(i, outcome)
        self._settle([i])

    def stop(self) -> None:
        """Nothing new starts: what has not started is cancelled. Of a graph that is done, it changes nothing."""
        if not self.done:
            self._stopped = True
            self._settle([])

    # where it stands

    @property
    def in_flight(self) -> list[str]:
        """Tasks that were taken and have not ended, in the order in which they were taken."""
        return list(self._in_flight)

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """How the tasks ended that have ended, first ended first. A live view."""
        return self._outcomes

    @property
    def waiting(self) -> int:
        """How many tasks have neither started nor ended."""
        return len(self._nodes) - len(self._outcomes) - len(self._in_flight)

    @property
    def done(self) -> bool:
        return len(self._outcomes) == len(self._nodes)

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def failed(self) -> bool:
        """Whether a task failed whose failure is not ignored."""
        return bool(self._blamed["failed"])

    def must_stop(self) -> bool:
        """Whether the caller has to cancel what is in flight: the run is `fail_fast`, and failed."""
        return self._fail_fast and self.failed

    def counts(self) -> dict[Count, int]:
        """How many tasks there are of each kind, zeros included; together all tasks."""
        counts: dict[Count, int] = {"waiting": self.waiting, "in_flight": len(self._in_flight)}
        return counts | self._counts

    def result(self) -> Result:
        """What the run has come to.

        Failed from the first failure on that is not ignored; else stopped, if it was; else unknown until all
        have ended; then failed if a task was cancelled all by itself, since what it was for was not done; else
        success. Only a stopped run may still change, into a failed one.
        """
        if self.failed:
            return "failed"
        if self._stopped:
            return "stopped"
        if not self.done:
            return "unknown"
        return "failed" if self._blamed["cancelled"] else "success"

    def cause(self, *, limit: int = 5) -> str:
        """One line for a run that failed or was stopped, with the names of up to ``limit`` tasks; else ""."""
        result = self.result()
        if result == "failed":
            return self._blame("failed" if self.failed else "cancelled", limit)
        if result == "stopped":
            return f"stopped: {self._counts['cancelled']} of {_tasks(len(self._nodes))} cancelled"
        return ""

    def why(self, name: str) -> str:
        """Why a task was skipped or cancelled, for people; "" for one that was not. Raises NotFound."""
        node = self._nodes[self._find(name)]
        match self._outcomes.get(name):
            case "skipped":
                return self._why_skipped(node)
            case "cancelled":
                return self._why_cancelled()
            case _:
                return ""

    def ancestors(self, name: str) -> list[str]:
        """All tasks that it depends on, over any number of steps; parents first, else as in the file."""
        found: set[int] = set()
        queue = [self._find(name)]
        while queue:
            parents = [self._index[parent] for parent in self._nodes[queue.pop()].depends]
            queue += [parent for parent in parents if parent not in found]
            found.update(parents)
        return [self._nodes[i].name for i in sorted(found, key=self._rank.__getitem__)]

    # the work

    def _find(self, name: str) -> int:
        try:
            return self._index[name]
        except KeyError:
            raise NotFound(f"the run has no task {name!r}") from None

    def _record(self, i: int, outcome: Outcome) -> None:
        node = self._nodes[i]
        self._outcomes[node.name] = outcome
        self._counts[outcome] += 1
        if outcome in self._blamed and not node.ignore_failure:
            self._blamed[outcome].append(i)

    def _settle(self, ended: Iterable[int]) -> None:
        """Draw the conclusions from tasks whose outcome was recorded just now."""
        if self._stopped or self.must_stop():
            self._cancel_waiting()
            return
        queue = deque(ended)
        while queue:
            for i in self._released_by(queue.popleft()):
                name = self._nodes[i].name
                if name in self._outcomes or name in self._in_flight:
                    continue
                if self._unmet[i]:
                    self._record(i, "skipped")
                    queue.append(i)
                else:
                    heapq.heappush(self._ready, i)

    def _released_by(self, parent: int) -> Iterator[int]:
        """Tell its children that a task has ended; gives those that wait for no other parent."""
        name = self._nodes[parent].name
        outcome = self._outcomes[name]
        met = _MET.get(outcome)
        for child in self._children[parent]:
            conditions = self._nodes[child].depends[name]
            if met not in conditions and not _meets(outcome, conditions):
                self._unmet[child] = True
            self._missing[child] -= 1
            if not self._missing[child]:
                yield child

    def _cancel_waiting(self) -> None:
        if self.waiting:
            for i, node in enumerate(self._nodes):
                if node.name not in self._outcomes and node.name not in self._in_flight:
                    self._record(i, "cancelled")
        self._ready.clear()

    # the words

    def _blame(self, outcome: Outcome, limit: int) -> str:
        blamed = self._blamed[outcome]
        shown = [self._one_line(i) for i in heapq.nsmallest(limit, blamed)]
        rest = f"{len(blamed) - len(shown)} more" if len(blamed) > len(shown) else ""
        names = ", ".join(shown) + (" and " if shown and rest else "") + rest
        verb = "failed" if outcome == "failed" else "cancelled"
        return f"{len(blamed)} of {_tasks(len(self._nodes))} {verb}: {names}"

    def _one_line(self, i: int) -> str:
        return " ".join(self._nodes[i].name.split())

    def _why_skipped(self, node: Node) -> str:
        if node.skip:
            return "`when` does not match"
        for parent, conditions in node.depends.items():
            outcome = self._outcomes.get(parent)
            if outcome is not None and not _meets(outcome, conditions):
                return f"{parent} {_VERB[outcome]}, and `depends` asks for {' or '.join(conditions or _DEFAULT)}"
        return "it was skipped by hand"

    def _why_cancelled(self) -> str:
        if self._stopped:
            return "the run was stopped"
        if self.must_stop():
            return f"{self._one_line(min(self._blamed['failed']))} failed, and the run is `fail_fast`"
        return "it was cancelled by hand"


def _meets(outcome: Outcome, conditions: Sequence[Condition]) -> bool:
    met = _MET.get(outcome)
    return met is not None and (met in (conditions or _DEFAULT) or "always" in conditions)


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


# making a graph


def _index(nodes: Sequence[Node]) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, node in enumerate(nodes):
        if index.setdefault(node.name, i) != i:
            raise InvalidRequest(f"two tasks have the name {node.name!r}")
    return index


def _children(nodes: Sequence[Node], index: Mapping[str, int]) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for parent in node.depends:
            try:
                children[index[parent]].append(i)
            except KeyError:
                raise InvalidRequest(
                    f"task {node.name!r} depends on {parent!r}, and there is no such task"
                ) from None
    return children


def _ranks(nodes: Sequence[Node], index: Mapping[str, int], children: Sequence[Sequence[int]]) -> list[int]:
    """The place of each node in an order with parents first that follows the file wherever it can."""
    missing = [len(node.depends) for node in nodes]
    ready = [i for i, number in enumerate(missing) if not number]
    ranks = [-1] * len(nodes)
    rank = 0
    while ready:
        i = heapq.heappop(ready)
        ranks[i] = rank
        rank += 1
        for child in children[i]:
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(ready, child)
    if rank < len(nodes):
        raise InvalidRequest(f"tasks depend on each other in a cycle: {_cycle(nodes, index, ranks)}")
    return ranks


def _cycle(nodes: Sequence[Node], index: Mapping[str, int], ranks: Sequence[int]) -> str:
    """A cycle in words, ``a → b → a`` where a depends on b. Every node without a rank has a parent without one."""
    path: dict[int, None] = {}
    i = ranks.index(-1)
    while i not in path:
        path[i] = None
        i = next(index[parent] for parent in nodes[i].depends if ranks[index[parent]] < 0)
    cycle = list(path)[list(path).index(i) :]
    first = cycle.index(min(cycle))
    names = [nodes[j].name for j in (*cycle[first:], *cycle[:first], min(cycle))]
    if len(names) > _SHOWN_OF_A_CYCLE:
        names = [*names[: _SHOWN_OF_A_CYCLE - 2], f"({len(names) - _SHOWN_OF_A_CYCLE + 1} more)", names[-1]]
    return " → ".join(names)
