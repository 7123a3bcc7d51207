"""The line of a root of groups, or of an executor: one workflow that says which run has its turn.

A run enters by an activity that signals this workflow and starts it where it is not there. From then on:

* A run that has its turn hears it by a signal, and is *watched*, by an activity that waits for the end of its
  workflow. So a run that is terminated makes room as one that succeeds does, and no run has to say goodbye.
* All that is known is kept as this workflow's memo, written by the very workflow task that tells the runs. A
  memo outlives its workflow: where somebody terminates the line, the activities of those that wait notice, and
  start it again with it, with its numbers, its order and those that run.

Turned down: a lock in the store (it would need a lease, and a clock), counters in the store (two writes that can
be torn apart), and a goodbye from each run (the terminated ones send none).

It stays open when nobody is there: an idle workflow costs nothing, and the next number must not be forgotten.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.signatures import WATCH_RUN, WatchRun
    from runyard.spec.group import (
        LINE_MEMO,
        LINE_WORKFLOW,
        WORD,
        Entry,
        Leave,
        LineState,
        LineView,
        LineWord,
        Member,
    )
    from workflows.line import Line
    from workflows.line_details import line_details
    from workflows.task import FOR_EVER, HEARTBEAT, INFRASTRUCTURE

NEWS_S: Final = 5
"""So often at most those that wait hear that they have come nearer; only the first ``NEAR`` of them."""
NEAR: Final = 20


@workflow.defn(name=LINE_WORKFLOW)
class GroupWorkflow:
    """A line. Argument: LineState; it has no end."""

    @workflow.init
    def __init__(self, state: LineState | None = None) -> None:
        state = state or LineState()
        self.line = Line(state)
        self._woken = True
        self._bug: BaseException | None = None
        self._saying = 0  # words under way
        self._told = dict(state.told)  # number and position, as runs were told
        self._leaving: set[str] = set()  # superseded ones that still run
        self._news_due = bool(state.told)  # what the last execution was about to tell
        self._news_timer = False
        self._known = ""  # the memo, as it was written last
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    @workflow.run
    async def run(self, state: LineState | None = None) -> None:
        for member in self.line.running():
            self._spawn(self._watch(member.entry))
        while True:
            self._decide()
            self._tell_news()
            self._remember()
            if self._is_long() and not self._saying:
                state = self.line.state()
                # with its memo, or one that is terminated at once would have forgotten all; and with who was told
                # what, or all that wait would be told again, which may fill the next execution at once
                workflow.continue_as_new(state.model_copy(update={"told": self._told}), memo={LINE_MEMO: state})
            self._woken = False
            await workflow.wait_condition(lambda: self._woken)
            if self._bug is not None:
                raise self._bug

    def _is_long(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= self.line.history_events

    # messages

    @workflow.signal(description="A run wants its turn.")
    def enter(self, entry: Entry) -> None:
        known = self.line.member(entry.run_id)
        again = known is not None and known.entry.execution_id != entry.execution_id
        if again and workflow.patched("a run's id may be used again"):  # the earlier one has ended
            self._forget(entry.run_id)
            known = None
        member = self.line.enter(entry)
        if known is not None and known.running:  # it did not hear it
            self._say(member, "turn")
        self._woken = True

    @workflow.signal(description="A run that waits does not want its turn any more.")
    def leave(self, leave: Leave) -> None:
        member = self.line.member(leave.run_id)
        if member is not None and not member.running:
            self._forget(leave.run_id)

    @workflow.query(description="Who runs, and who waits, in order.")
    def describe(self) -> LineView:
        return self.line.view(workflow.info().workflow_id)

    # the loop

    def _decide(self) -> None:
        for member in self.line.superseded():
            self._supersede(member)
        for member in self.line.skipped():
            self._skip(member)
        for chosen in self.line.turns():
            self.line.admit(chosen)
            self._told.pop(chosen.entry.run_id, None)
            self._say(chosen, "turn")
            self._spawn(self._watch(chosen.entry))
            self._news_due = True

    def _supersede(self, member: Member) -> None:
        run_id = member.entry.run_id
        if run_id in self._leaving:
            return
        if member.running:  # it keeps its place until it has ended
            self._leaving.add(run_id)
        else:
            self._forget(run_id)
        newest = self.line.newest(member.entry.group)
        by = f"run {newest.entry.run_id}" if newest is not None else "a newer run"
        self._say(member, "superseded", f"superseded by {by} of {member.entry.group}")

    def _skip(self, member: Member) -> None:
        first = self.line.before(member)[0].entry.run_id
        self._forget(member.entry.run_id)
        self._say(member, "skip", f"skipped: run {first} of {member.entry.group} has not ended")

    def _remember(self) -> None:
        """In the memo, by the same workflow task that tells the runs: the two cannot be torn apart."""
        state = self.line.state()
        text = state.model_dump_json(exclude_defaults=True)
        if text != self._known:
            self._known = text
            workflow.upsert_memo({LINE_MEMO: state})
            workflow.set_current_details(line_details(self.describe()))

    def _forget(self, run_id: str, *, only: str = "") -> None:
        """``only``: if it is this execution; another run may have its id by now."""
        member = self.line.member(run_id)
        if only and member is not None and member.entry.execution_id != only:
            return
        self.line.leave(run_id)
        self._told.pop(run_id, None)
        self._leaving.discard(run_id)
        self._woken = self._news_due = True

    # what it says

    def _tell_news(self) -> None:
        """Who has just come or has another number, at once; those that came nearer, every few seconds."""
        order = self.line.order()
        for member in order:
            if self._told.get(member.entry.run_id, (0, 0))[0] != member.place:
                self._tell(member)
        if self._news_due and not self._news_timer and any(map(self._has_news, order[:NEAR])):
            self._news_timer = True
            self._spawn(self._tell_later())
        self._news_due = False

    def _has_news(self, member: Member) -> bool:
        return self._told.get(member.entry.run_id) != (member.place, self.line.position(member))

    def _tell(self, member: Member) -> None:
        self._told[member.entry.run_id] = member.place, self.line.position(member)
        self._say(member, "waits", self.line.why(member))

    async def _tell_later(self) -> None:
        await workflow.sleep(NEWS_S, summary="tell those that wait where they are")
        self._news_timer = False
        for member in self.line.order()[:NEAR]:
            if self._has_news(member):
                self._tell(member)

    def _say(self, member: Member, kind: Any, message: str = "") -> None:
        entry = member.entry
        word = LineWord(
            line=entry.line,
            kind=kind,
            counter=member.place if entry.group else 0,
            message=message,
            execution_id=entry.execution_id,
        )
        if kind == "waits":
            _, position = self._told[entry.run_id]
            word = word.model_copy(update={"position": position, "at": workflow.now()})
        self._saying += 1
        self._spawn(self._deliver(entry, word))

    async def _deliver(self, entry: Entry, word: LineWord) -> None:
        run = workflow.get_external_workflow_handle(entry.run_id)
        try:
            await run.signal(WORD, word)
            if word.kind == "superseded":  # after the word, so that the run knows why
                await run.cancel()
        except FailureError:  # it has ended
            self._forget(entry.run_id, only=entry.execution_id)
        self._saying -= 1
        self._woken = True

    # those that run

    async def _watch(self, entry: Entry) -> None:
        """Until its workflow has ended, in whatever way."""
        try:
            await workflow.execute_activity(
                WATCH_RUN,
                WatchRun(run_id=entry.run_id, execution_id=entry.execution_id),
                start_to_close_timeout=FOR_EVER,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=INFRASTRUCTURE,
                summary=entry.run_id[:120],
            )
        except ActivityError as error:  # one that no further try mends: better two at a time than none for ever
            workflow.logger.warning("run %s cannot be watched: %s", entry.run_id, error.cause)
        self._forget(entry.run_id, only=entry.execution_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """A bug in a part must stop the whole, visibly: the main loop raises it."""
        try:
            await work
        except Exception as error:
            self._bug, self._woken = error, True
