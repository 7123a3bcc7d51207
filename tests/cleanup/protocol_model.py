"""The real code of runs, restarts and cleanups on a store that yields at every call, under every schedule.

How it explores. A coroutine is deterministic, so what it does next is a function of the answers it had so far
(its *trace*). So a program's next call is looked up by its trace, and only a trace that was never seen is run
through the coroutine. A state is what the store holds, plus each program's trace and whether it has crashed.
States that were seen are not entered again; that leaves nothing out, since equal states have equal futures. Nor
do these reductions:

* The two cleanups are the same program, so states that differ by exchanging them are one. Programs that have ended
  are all alike.
* A call that commutes with whatever others may do from now on is done together with the call before it: reading
  what no program writes (a run's result, a pin); asking whether a run has ended that has; telling the checker
  something.
* A cleanup begins by looking, and all that it takes from that is the names of the runid objects. Two looks that
  saw the same names, and more or less data, go on as one.
* A crash is possible after every call that changes something, once for each program, which then begins again
  from its start, as Temporal's retry of an activity does. A crash after a call that only reads is the same as
  one before it.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cutting import stat_each

from runyard.errors import Conflict, NotFound
from runyard.records import expiry, sharing
from runyard.records.fates import Judge, Rules, RunStatus
from runyard.spec.cleanup import Retention
from runyard.store import paths
from runyard.store.base import ObjectInfo, Target

THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = THEN + timedelta(days=400)

Keys = int
"""What a store holds, see `World`: all objects are empty. Facts about runs are keys that no program lists."""

Listing = Literal["snapshot", "lazy"]
"""Whether a listing shows one moment, or each key the moment it comes to it. Real ones are in between."""


class Broken(Exception):
    """An invariant does not hold, or a program failed by itself."""


@dataclass(frozen=True)
class Call:
    """One call of the store or of the world. ``hidden``: see the module's third paragraph."""

    name: str
    key: str
    more: str = ""
    hidden: bool = False

    def __await__(self) -> Generator["Call", Any, Any]:
        return (yield self)


@dataclass(frozen=True)
class Raised:
    """An answer that is an error."""

    error: str


# the store, as programs see it


class ModelStore:
    """An `ObjectStore` each of whose calls is a step of the schedule."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    async def put(
        self, key: str, data: bytes | AsyncIterable[bytes], *, size: int | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        await Call("put", key)
        return _info(key)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        await Call("stat", key, hidden=key.startswith("runs/"))
        yield b""

    async def stat(self, key: str) -> ObjectInfo:
        await Call("stat", key, hidden=key.startswith("runs/"))
        return _info(key)

    async def stat_many(self, keys: Sequence[str]) -> dict[str, ObjectInfo]:
        return await stat_each(self.stat, keys)

    async def delete(self, key: str) -> None:
        await Call("delete", key)

    async def delete_many(self, keys: Sequence[str]) -> None:
        """One after the other, in an order of its own: a crash may come between any two."""
        for key in sorted(keys, reverse=self._listing == "lazy"):
            await Call("delete", key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        if self._listing == "snapshot":
            keys: tuple[str, ...] = await Call("list", prefix, start_after)
            for key in keys:
                yield _info(key)
            return
        while key := await Call("next", prefix, start_after):
            start_after = key
            yield _info(key)

    async def list_many(self, prefixes: Sequence[str]) -> AsyncIterator[ObjectInfo]:
        for prefix in prefixes:
            async for info in self.list(prefix):
                yield info

    def target(self, prefix: str, *, expires_s: float) -> Target:
        raise NotImplementedError

    def source(self, key: str, *, expires_s: float) -> str:
        raise NotImplementedError

    async def close(self) -> None: ...


def _info(key: str) -> ObjectInfo:
    return ObjectInfo(key=key, size=0, modified_at=THEN)


# the world

ITEM = "logs/t"
DATA = [f"{ITEM}/data/{n}" for n in range(2)]
RUNS = ("a", "b", "r")
CLOSED, TOLD = "world/closed/", "world/told/"
KEYS = sorted(
    [*DATA, paths.tombstone(ITEM)] + [each + run for each in (paths.runids(ITEM), CLOSED, TOLD) for run in RUNS]
)
"""All keys that any program writes."""

BITS = {key: 1 << n for n, key in enumerate(KEYS)}
WHOLE = sum(BITS[key] for key in DATA)


def names(keys: Keys) -> list[str]:
    return [key for key in KEYS if keys & BITS[key]]


def seen_by(call: Call) -> Keys:
    """What of the world the answer to a call may depend on."""
    if call.name == "stat":
        return BITS.get(call.key, 0)
    if call.name == "is_closed":
        return BITS[CLOSED + call.key]
    if call.name in ("list", "next"):
        return sum(BITS[key] for key in KEYS if key.startswith(call.key) and key > call.more)
    return 0


def answer(call: Call, seen: Keys) -> object:
    if call.name == "stat":
        return None if seen else Raised("not_found")
    if call.name == "is_closed":
        return bool(seen)
    if call.name == "list":
        return tuple(names(seen))
    if call.name == "next":
        return next(iter(names(seen)), "")
    return None


def check(call: Call, keys: Keys) -> None:
    """Raises Broken where a call breaks a promise: 6, or what a restart was told."""
    having = [run for run in RUNS if keys & BITS[TOLD + run] and not keys & BITS[CLOSED + run]]
    if call.name == "delete" and call.key in DATA and keys & BITS[call.key] and having:
        raise Broken(f"{call.key} is deleted while {' and '.join(having)} has it")
    if call.name == "told" and call.key != f"{TOLD}a" and keys & WHOLE != WHOLE:
        # from then on a delete is forbidden, so there is no need to let it read what it was told that it has
        raise Broken(f"{call.key} has {names(keys & WHOLE)} only")


# programs

Program = Callable[[ModelStore], Coroutine[Any, Any, "Then | None"]]


@dataclass(frozen=True)
class Then:
    """What a program does next, and all that it still knows then: traces that come to the same go on as one."""

    what: Callable[..., Coroutine[Any, Any, None]]
    knows: tuple[str, ...]


async def first_run(store: ModelStore) -> None:
    """Makes the item, as `schedule_task` and what follows do, and ends."""
    await sharing.claim_new(store, "a", ITEM)
    await Call("told", f"{TOLD}a", hidden=True)
    for key in DATA:
        await store.put(key, b"")
    await Call("close", CLOSED + "a")


async def second_run(store: ModelStore) -> None:
    """Refers to the first one's item, and ends."""
    await _claim(store, "b")
    await Call("close", CLOSED + "b")


async def restart(store: ModelStore) -> None:
    """Refers to the first one's item, and stays open."""
    await _claim(store, "r")


async def _claim(store: ModelStore, run_id: str) -> None:
    """As restarts do.

    Told that the data are not there a run makes an item of its own, as the first one does: a name that no other
    run uses, so that there is nothing new to see.
    """
    await Call("wait", CLOSED + "a")  # an open run is not restarted
    if await sharing.claim_kept(store, run_id, ITEM):
        await Call("told", TOLD + run_id, hidden=True)


async def cleanup(store: ModelStore) -> "Then | None":
    """The real one, over all logs, with a retention of nothing: first what it sees, then what it does."""
    page = [found async for found in sharing.walk(store, paths.LOGS)]
    return Then(clean, tuple(info.key for found in page for info in found.runids)) if page else None


async def clean(store: ModelStore, runids: tuple[str, ...]) -> None:
    async def ask(ids: Sequence[str]) -> Mapping[str, RunStatus]:
        return {each: RunStatus(open=not await Call("is_closed", each), closed_at=THEN) for each in ids}

    rules = Rules(retention=Retention(logs_s=0, unknown_s=0), now=NOW)
    judge = Judge(store, rules, ask, at_once=1)
    page = [sharing.Found(item=ITEM, runids=[_info(key) for key in runids])]
    await expiry.expire_page(store, "logs", page, judge, expiry.How(at_once=1))


# the exploration


@dataclass(frozen=True, slots=True)
class Step:
    """What happens next at a trace. ``waits_for``: only when this is there. ``seen``: what it depends on."""

    call: Call
    waits_for: Keys
    seen: Keys
    adds: Keys
    removes: Keys
    is_checked: bool

    @classmethod
    def of(cls, call: Call) -> "Step":
        return cls(
            call=call,
            waits_for=BITS[call.key] if call.name == "wait" else 0,
            seen=seen_by(call),
            adds=BITS[call.key] if call.name in ("put", "close", "told") else 0,
            removes=BITS.get(call.key, 0) if call.name == "delete" else 0,
            is_checked=call.name in ("delete", "told"),
        )

    @property
    def writes(self) -> bool:
        return bool(self.adds | self.removes)

    def is_free(self, keys: Keys) -> bool:
        """Whether it commutes with whatever others do from now on."""
        return self.call.hidden or (self.call.name == "is_closed" and bool(keys & self.seen))

    def after(self, keys: Keys) -> Keys:
        if self.is_checked:
            check(self.call, keys)
        return keys & ~self.removes | self.adds


class Actor:
    """A program's traces: each is a number; what comes next at each, and what it had been told to get there."""

    def __init__(self, program: Program, listing: Listing) -> None:
        self._program = program
        self._store = ModelStore(listing)
        self._answers: list[tuple[object, ...]] = []
        self._moves: dict[tuple[int, Keys], int] = {}
        self.steps: list[Step | None] = []
        self._number(())

    def move(self, trace: int, keys: Keys) -> int:
        """The trace after the step at this one."""
        step = self.steps[trace]
        assert step is not None
        seen = keys & step.seen
        after = self._moves.get((trace, seen))
        if after is None:
            after = self._moves[trace, seen] = self._number((*self._answers[trace], answer(step.call, seen)))
        return after

    def _number(self, answers: tuple[object, ...]) -> int:
        found = self._next(answers)
        if isinstance(found, Then):
            answers = (found,)
            if answers in self._answers:
                return self._answers.index(answers)
            found = self._next(answers)
            assert not isinstance(found, Then)
        self._answers.append(answers)
        self.steps.append(found)
        return len(self._answers) - 1

    def _next(self, answers: tuple[object, ...]) -> Step | Then | None:
        """None at the end. Raises Broken where the program fails."""
        match answers:
            case (Then() as then, *told):
                work = then.what(self._store, then.knows)
            case told:
                work = self._program(self._store)
        try:
            call = work.send(None)
            for each in told:
                call = work.throw(NotFound(each.error)) if isinstance(each, Raised) else work.send(each)
        except StopIteration as end:
            return end.value
        except (NotFound, Conflict) as error:
            raise Broken(f"a program failed: {error!r}") from error
        finally:
            work.close()
        assert isinstance(call, Call)
        return Step.of(call)


State = tuple[int, ...]
"""The keys, then for each actor twice its trace, plus one if it has crashed; or `ENDED`."""

ENDED = -1


@dataclass
class Explored:
    """How much was looked at."""

    states: int = 0
    ends: int = 0


class Model:
    """All schedules of some programs. With ``crashes`` each of them may crash once."""

    def __init__(
        self, programs: Sequence[Program], *, listing: Listing = "snapshot", crashes: bool = True
    ) -> None:
        table = {each: Actor(each, listing) for each in programs}
        self._actors = [table[each] for each in programs]
        self._twins = [at for at in range(1, len(programs)) if programs[at] is programs[at - 1]]
        self._crashes = crashes
        self._alone = table.get(cleanup) or Actor(cleanup, listing)
        self._ended: set[Keys] = set()

    def explore(self, *, most: int = 5_000_000) -> Explored:
        """Every state that can be reached. Raises Broken with the first that should not be."""
        begin: State = (0, *[0 for _ in self._actors])
        seen, line, found = {begin}, [begin], Explored()
        while line:
            state = line.pop()
            found.states += 1
            assert found.states <= most, f"the bound is too large: more than {most} states"
            following = self._following(state)
            if not following:
                found.ends += 1
                self._check_end(state[0])
            for each in following:
                if each not in seen:
                    seen.add(each)
                    line.append(each)
        return found

    def _following(self, state: State) -> list[State]:
        keys, found = state[0], []
        for at, actor in enumerate(self._actors):
            code = state[at + 1]
            if code == ENDED:
                continue
            trace = code >> 1
            step = actor.steps[trace]
            assert step is not None
            if step.waits_for & ~keys:
                continue
            after, moved = step.after(keys), actor.move(trace, keys)
            while (more := actor.steps[moved]) is not None and more.is_free(after):
                after, moved = more.after(after), actor.move(moved, after)
            found.append(self._ordered(after, state, at, ENDED if more is None else moved << 1 | code & 1))
            if self._crashes and not code & 1 and step.writes and more is not None:
                found.append(self._ordered(after, state, at, 1))
        return found

    def _ordered(self, keys: Keys, state: State, at: int, moved: int) -> State:
        """The state with one actor moved; twins are kept in an order."""
        changed = [keys, *state[1:]]
        changed[at + 1] = moved
        for twin in self._twins:
            if changed[twin] > changed[twin + 1]:
                changed[twin], changed[twin + 1] = changed[twin + 1], changed[twin]
        return tuple(changed)

    def _check_end(self, keys: Keys) -> None:
        """After two more cleanups: what has no runid object is gone; when all runs have ended, everything is."""
        if keys in self._ended:
            return
        self._ended.add(keys)
        after = self._clean(self._clean(keys))
        there = names(after)
        if not any(key.startswith(paths.runids(ITEM)) for key in there) and any(key in DATA for key in there):
            raise Broken(f"no run refers to {ITEM}, and after two cleanups there is {there}")
        closed = after | sum(BITS[CLOSED + run] for run in RUNS)
        if left := [key for key in names(self._clean(self._clean(closed))) if key.startswith(ITEM)]:
            raise Broken(f"no run is open, and after two cleanups there is {left}")

    def _clean(self, keys: Keys) -> Keys:
        """A cleanup that nobody disturbs."""
        trace = 0
        while (step := self._alone.steps[trace]) is not None:
            keys, trace = step.after(keys), self._alone.move(trace, keys)
        return keys
