"""Where a run stands: the graph, the records of its tasks, and what people see of them.

The workflow (run.py) decides; this only knows, and can be shown, carried over and counted.
"""

from collections import Counter
from datetime import datetime

from activities.signatures import PreparedRun, TaskAttempt
from runyard.graph import Graph, Node, Outcome
from runyard.reasons import Reason
from runyard.spec.run import (
    CacheUse,
    GraphTask,
    RunPhase,
    RunResultWord,
    RunView,
    TaskStatus,
    TaskView,
    task_id,
)
from workflows.state import Carried, Clock, Deleting, TaskRecord, view_task


class Board:
    """All that a run knows. Nothing of it waits or asks anybody."""

    def __init__(
        self,
        run_id: str,
        execution_id: str,
        created_at: datetime,
        prepared: PreparedRun,
        *,
        graph: Graph | None = None,
    ) -> None:
        self.run_id = run_id
        self.execution_id = execution_id
        self.clock = Clock(created_at)
        self.prepared = prepared
        self.nodes: dict[str, GraphTask] = {node.name: node for node in prepared.tasks}
        self.graph = graph or _new_graph(prepared)
        self.kept = dict(Counter(node.kept.run for node in prepared.tasks if node.kept))
        self.records: dict[str, TaskRecord] = {}
        self.deleting: dict[tuple[str, int], Deleting] = {}  # by task and attempt
        self._shown: dict[tuple[str, bool], TaskView] = {}  # views that do not change: see `view_of`
        self.failed: list[str] = []  # in the order in which they failed
        self.finished: list[str] = []  # the last ten that ended, newest last
        self.stop: Reason | None = None
        self.stop_message = ""
        self.recorded = False
        self.hurry = False  # somebody cancelled the run: no pod is kept any longer
        self.counter = 0  # its number in its group's root
        self.position = 0  # in the line where it waits
        self.began_ms = 0  # when it had its turn
        self.superseded = ""  # who took its place, where a newer run of its group did
        self.caches: CacheUse | None = None  # over all attempts
        self.unplanned: RunPhase | None = None  # the phase of a run without a plan
        self.unplanned_cause = ""

    @classmethod
    def of(cls, run_id: str, execution_id: str, carried: Carried) -> "Board":
        """As the last execution left it."""
        graph = Graph.restore(
            _graph_nodes(carried.prepared),
            carried.outcomes,
            carried.in_flight,
            fail_fast=carried.prepared.fail_fast,
            stopped=carried.stop is not None,
        )
        board = cls(run_id, execution_id, carried.created_at, carried.prepared, graph=graph)
        board.records = {record.task: record for record in carried.records}
        board.failed = [name for name, outcome in carried.outcomes.items() if outcome == "failed"]
        board.finished, board.recorded, board.hurry = carried.finished, carried.recorded, carried.hurry
        board.stop, board.stop_message = carried.stop, carried.stop_message
        board.counter, board.began_ms, board.superseded = carried.counter, carried.began_ms, carried.superseded
        board.caches = carried.caches
        return board

    def carry(self) -> Carried:
        return Carried(
            prepared=self.prepared,
            created_at=self.clock.created_at,
            outcomes=dict(self.graph.outcomes),
            in_flight=self.graph.in_flight,
            records=list(self.records.values()),
            deleting=list(self.deleting.values()),
            finished=self.finished,
            stop=self.stop,
            stop_message=self.stop_message,
            recorded=self.recorded,
            hurry=self.hurry,
            counter=self.counter,
            began_ms=self.began_ms,
            superseded=self.superseded,
            caches=self.caches,
        )

    # tasks

    def id_of(self, name: str) -> str:
        return self.nodes[name].id or task_id(self.run_id, self.execution_id, name)

    def attempt_of(self, name: str) -> TaskAttempt:
        """What the activities are told: the task's present attempt."""
        attempt = TaskAttempt(
            run_id=self.run_id,
            task=name,
            task_id=self.id_of(name),
            attempt=self.records[name].attempt,
            at=self.nodes[name].at,
            header=self.prepared.header,
        )
        return attempt.model_copy(update={"counter": self.counter}) if self.counter else attempt

    def output_attempts(self, names: list[str]) -> dict[str, tuple[str, int]]:
        """Task ids and attempts of those that have run, here or in the run from which they are kept."""
        kept = {name: (node.id, node.kept.attempt) for name in names if (node := self.nodes[name]).kept}
        return kept | {n: (self.id_of(n), self.records[n].attempt) for n in names if n in self.records}

    def end(self, name: str, outcome: Outcome) -> None:
        self.finished = [*self.finished[-9:], name]
        if outcome == "failed":
            self.failed.append(name)
        self.graph.end(name, outcome)

    def count_caches(self, used: CacheUse | None) -> None:
        """Of one attempt."""
        if used is not None:
            before = self.caches or CacheUse(restores=0, hits=0)
            self.caches = CacheUse(restores=before.restores + used.restores, hits=before.hits + used.hits)

    # views

    def view(self, now: datetime, *, tasks: list[str] | None = None) -> RunView:
        """The run, with all its tasks or only some."""
        prepared = self.prepared
        result, cause = self.result()
        phase: RunPhase = self.unplanned or ("finished" if self.graph.done else "running")
        done = phase == "finished"
        return RunView(
            id=self.run_id,
            name=prepared.name,
            phase=phase,
            result=result if done or self.graph.failed else "unknown",
            cause=cause,
            group=prepared.group,
            counter=self.counter,
            position=self.position,
            project=prepared.project,
            executor=prepared.executor,
            trigger=prepared.trigger,
            owner=prepared.owner,
            created_at=self.clock.created_at,
            ended_at=now if done else None,
            counts=self.counts(),
            tasks=[self.view_of(name) for name in (self.nodes if tasks is None else tasks)],
            annotations=prepared.annotations,
            execution_id=self.execution_id,
            restart_of=prepared.restart_of,
            kept=self.kept,
            caches=self.caches,
        )

    def view_of(self, name: str) -> TaskView:
        outcome = self.graph.outcomes.get(name)
        record = self.records.get(name)
        # what has ended, or has not begun, looks the same at the next question: most of a large run
        lasting = (record is None) == (outcome is None)
        view = self._shown.get((name, record is None)) if lasting else None
        if view is None:
            why = self.graph.why(name) if record is None and outcome in ("skipped", "cancelled") else ""
            view = view_task(self.nodes[name], record, self.clock, outcome=outcome, why=why)
            if lasting:
                self._shown[name, record is None] = view
        return view

    def result(self) -> tuple[RunResultWord, str]:
        """The word, and the one-line cause of anything but a success."""
        if self.unplanned is not None:
            return "unknown", self.unplanned_cause
        if self.stop is Reason.TIMEOUT_RUN:
            return "failed", self.stop_message
        result = self.graph.result()
        if result == "stopped":
            return result, self.stop_message
        return result, self.graph.cause() or self.prepared.nothing

    def counts(self) -> dict[TaskStatus, int]:
        counts: dict[TaskStatus, int] = {
            word: number for word, number in self.graph.counts().items() if word != "in_flight" and number
        }
        for name in self.graph.in_flight:
            status = self.records[name].status
            counts[status] = counts.get(status, 0) + 1
        return counts


def _new_graph(prepared: PreparedRun) -> Graph:
    """Tasks that are kept from an earlier run have succeeded before anything begins."""
    kept: dict[str, Outcome] = {node.name: "success" for node in prepared.tasks if node.kept}
    return Graph.restore(_graph_nodes(prepared), kept, [], fail_fast=prepared.fail_fast, stopped=False)


def _graph_nodes(prepared: PreparedRun) -> list[Node]:
    return [
        Node(name=task.name, depends=task.depends, skip=task.skip, ignore_failure=task.ignore_failure)
        for task in prepared.tasks
    ]
