"""The protocol beyond the bound of the exhaustive search: any number of runs, restarts of restarts and cleanups.

Programs may crash, and may stall: then a second try begins while the first one is still there, and either may go
on at any moment. (A run's own writes do not stall: an agent's claim of its attempt sees to that.)
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from protocol_model import NOW, THEN, Call, ModelStore, Raised

from runyard.errors import NotFound
from runyard.records import expiry, sharing
from runyard.records.fates import Judge, Rules, RunStatus
from runyard.spec.cleanup import Retention
from runyard.store import paths

Work = Callable[[], Coroutine[Any, Any, None]]
SIZE = 2


@dataclass
class Run:
    """``items``: those that it was told to have. ``told`` by each try, the last one counts for its restarts."""

    id: str
    items: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    open: bool = True


@dataclass(eq=False)
class Actor:
    """A program under way, and what it waits for."""

    work: Work
    is_cleanup: bool
    may_stall: bool
    coroutine: Coroutine[Any, Any, None] | None = None
    call: Call | None = None


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = ModelStore("lazy")
        self.keys: set[str] = set()
        self.runs: dict[str, Run] = {}
        self.actors: list[Actor] = []
        self.numbers = iter(range(10_000))
        self.one_by_one = patch.object(sharing, "_AT_ONCE", 1)  # there is no event loop here: one call at a time
        self.one_by_one.start()

    # what begins

    @rule(size=st.integers(1, 3))
    def a_run(self, size: int) -> None:
        run = Run(f"run{next(self.numbers)}")
        names = [f"logs/{run.id}-{n}" for n in range(size)]

        async def work() -> None:
            await self._make(run, names)
            run.items = names
            await Call("close", run.id)

        self.runs[run.id] = run
        self._begin(work, may_stall=False)

    @precondition(lambda self: any(not run.open for run in self.runs.values()))
    @rule(data=st.data(), ends=st.booleans())
    def a_restart(self, data: st.DataObject, ends: bool) -> None:
        of = data.draw(st.sampled_from([run for run in self.runs.values() if not run.open]))
        run, tries = Run(f"run{next(self.numbers)}"), iter(range(100))

        async def work() -> None:
            mine, items = next(tries), []
            for n, item in enumerate(of.items):
                if await sharing.claim_kept(self.store, run.id, item):
                    self._tell(run, item)
                    items.append(item)
                else:
                    new = f"logs/{run.id}-{n}-{mine}"  # a try that stalled may still write to its own
                    await self._make(run, [new])
                    items.append(new)
            run.items = items
            if ends:
                await Call("close", run.id)

        self.runs[run.id] = run
        self._begin(work, may_stall=not ends)

    @rule()
    def a_cleanup(self) -> None:
        self._begin(self._clean, is_cleanup=True)

    # what happens to it

    @precondition(lambda self: self.actors)
    @rule(data=st.data(), steps=st.integers(1, 12))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        actor = data.draw(st.sampled_from(range(len(self.actors))))
        self._advance(self.actors[actor], steps)

    @precondition(lambda self: self.actors)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        actor = self.actors[data.draw(st.sampled_from(range(len(self.actors))))]
        if actor.coroutine is not None:
            actor.coroutine.close()
        self._restart(actor)

    @precondition(lambda self: any(actor.may_stall for actor in self.actors))
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        stalled = data.draw(st.sampled_from([n for n, actor in enumerate(self.actors) if actor.may_stall]))
        self._begin(self.actors[stalled].work, is_cleanup=self.actors[stalled].is_cleanup)

    @invariant()
    def what_a_run_has_is_whole(self) -> None:
        for run in self.runs.values():
            for item in run.held if run.open else ():
                assert all(f"{item}/data/{n}" in self.keys for n in range(SIZE)), (run.id, item, sorted(self.keys))

    def teardown(self) -> None:
        """Let all come to their end, then clean twice; then end all runs and clean twice."""
        try:
            self._end_all()
        finally:
            self.one_by_one.stop()

    def _end_all(self) -> None:
        for actor in list(self.actors):
            self._advance(actor, 100_000)
        for everything in (False, True):
            for run in self.runs.values():
                run.open = run.open and not everything
            for _ in range(2):
                self._advance(self._begin(self._clean, is_cleanup=True), 100_000)
            self.what_a_run_has_is_whole()
            referred = {paths.item_of(key) for key in self.keys if "/runs/" in key}
            left = [key for key in self.keys if paths.item_of(key) not in referred]
            assert not left, left
        assert not self.keys

    # inside

    async def _make(self, run: Run, items: Sequence[str]) -> None:
        for item in items:
            await sharing.claim_new(self.store, run.id, item)
            for n in range(SIZE):
                await self.store.put(f"{paths.data(item)}{n}", b"")
            self._tell(run, item)

    def _tell(self, run: Run, item: str) -> None:
        run.held.add(item)
        self.what_a_run_has_is_whole()

    async def _clean(self) -> None:
        async def ask(ids: Sequence[str]) -> Mapping[str, RunStatus]:
            return {each: RunStatus(open=await Call("is_open", each), closed_at=THEN) for each in ids}

        rules = Rules(retention=Retention(logs_s=0, unknown_s=0), now=NOW)
        judge = Judge(self.store, rules, ask, at_once=1)
        async for _ in expiry.expire_items(self.store, "logs", judge, expiry.How(at_once=1)):
            pass

    def _begin(self, work: Work, *, is_cleanup: bool = False, may_stall: bool = True) -> Actor:
        actor = Actor(work=work, is_cleanup=is_cleanup, may_stall=may_stall)
        self.actors.append(actor)
        self._restart(actor)
        return actor

    def _restart(self, actor: Actor) -> None:
        actor.coroutine = actor.work()
        actor.call = actor.coroutine.send(None)

    def _advance(self, actor: Actor, steps: int) -> None:
        for _ in range(steps):
            if actor.coroutine is None or actor.call is None:
                break
            answer = self._apply(actor.call)
            try:
                if isinstance(answer, Raised):
                    actor.call = actor.coroutine.throw(NotFound(answer.error))
                else:
                    actor.call = actor.coroutine.send(answer)
            except StopIteration:
                actor.call = actor.coroutine = None
        if actor.coroutine is None and actor in self.actors:
            self.actors.remove(actor)

    def _apply(self, call: Call) -> object:
        if call.name == "put":
            self.keys.add(call.key)
        elif call.name == "delete":
            self.keys.discard(call.key)
            self.what_a_run_has_is_whole()
        elif call.name == "stat":
            return None if call.key in self.keys else Raised("not_found")
        elif call.name == "next":
            return min((key for key in self.keys if key.startswith(call.key) and key > call.more), default="")
        elif call.name == "is_open":
            return self.runs[call.key].open
        else:
            assert call.name == "close"
            self.runs[call.key].open = False
        return None


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
