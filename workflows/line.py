"""Who waits in a line, and whose turn it is: pure, so that every rule can be tried without a server.

The rules: within a group strictly by number, and as many at a time as its policy allows, the newest run's. In the
whole line as many as its cap allows: by priority first, then by the owner who has the fewest running, then by
number. Numbers follow the order in which runs were started, not that in which they came: one whose file took
longer to read takes the number of a later one that still waits, and that one the next. The whole state is small
and plain (LineState): it is what an execution hands on to the next.
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from runyard.spec.group import Entry, LineState, LineView, Member, Policy, Waiting

_UNTOLD = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class _Standing:
    """Where all are, worked out once for all who are told. For each anew it cost the cube of their number: with
    200 of them more time than a workflow task has, so that the line stood still for ever."""

    ready: list[Member]  # their group has room, in the order in which the cap lets them in
    free: frozenset[str]  # the same, by run
    positions: dict[str, int]  # of those that wait, by run
    running: dict[str, list[str]]  # by group


class Line:
    """Nothing of it waits or asks anybody. Members are kept by number."""

    def __init__(self, state: LineState) -> None:
        self.counter = state.counter
        self.cap = state.cap
        self.history_events = state.history_events
        self._members = {member.entry.run_id: member for member in state.members}
        self._standing: _Standing | None = None  # until somebody comes, goes or is admitted

    def state(self) -> LineState:
        return LineState(
            counter=self.counter,
            cap=self.cap,
            members=list(self._members.values()),
            history_events=self.history_events,
        )

    # what happens to it

    def enter(self, entry: Entry) -> Member:
        """A run wants its turn; it gets the next number, unless it is known or brings one."""
        self.cap = entry.cap
        known = self._members.get(entry.run_id)
        if known is not None:
            return known
        self._standing = None
        place = entry.counter or self.counter + 1
        self.counter = max(self.counter, place)
        self._members[entry.run_id] = Member(entry=entry, place=place)
        if not entry.counter:
            self._move_up(self._members[entry.run_id])
        self._members = dict(sorted(self._members.items(), key=lambda each: each[1].place))
        return self._members[entry.run_id]

    def _move_up(self, last: Member) -> None:
        """Before those that were started later and wait: they and it take their places anew."""
        moved = [m for m in self.waiting() if _age(m) > _age(last)] + [last]
        places = sorted(m.place for m in moved)
        for member, place in zip(sorted(moved, key=_age), places, strict=True):
            self._members[member.entry.run_id] = member.model_copy(update={"place": place})

    def leave(self, run_id: str) -> None:
        """It has ended, or does not want its turn any more."""
        self._standing = None
        self._members.pop(run_id, None)

    def admit(self, member: Member) -> None:
        self._standing = None
        self._members[member.entry.run_id] = member.model_copy(update={"running": True})

    # what follows from it

    def member(self, run_id: str) -> Member | None:
        return self._members.get(run_id)

    def running(self) -> list[Member]:
        return [member for member in self._members.values() if member.running]

    def waiting(self) -> list[Member]:
        return [member for member in self._members.values() if not member.running]

    def policy(self, group: str) -> Policy:
        """The newest run's: what was said last holds."""
        newest = self.newest(group)
        return newest.entry.policy if newest is not None else Policy()

    def newest(self, group: str) -> Member | None:
        """The run of the group that was started last."""
        return max(self._group(group), key=_age, default=None)

    def before(self, member: Member) -> list[Member]:
        """Those of its group that came earlier."""
        return [m for m in self._group(member.entry.group) if m.place < member.place]

    def superseded(self) -> list[Member]:
        """Those whose place a newer run of their group has taken."""
        newest = {m.entry.group: m for m in sorted(self._members.values(), key=_age) if m.entry.group}
        taking = [m for m in newest.values() if m.entry.policy.kind == "cancel-superseded"]
        return [older for member in taking for older in self._group(member.entry.group) if older is not member]

    def skipped(self) -> list[Member]:
        """Those that do not want to wait, and would have to."""
        return [
            m
            for m in self.waiting()
            if m.entry.group and m.entry.policy.kind == "skip-if-running" and self.before(m)
        ]

    def turns(self) -> list[Member]:
        """All whose turn it is now, in order: who of them is admitted moves none of the others."""
        room = None if self.cap is None else max(0, self.cap - len(self.running()))
        return self._look().ready[:room]

    def order(self) -> list[Member]:
        """Those that wait, as they will have their turn if nothing changes: the first of each group first."""
        look = self._look()
        return [*look.ready, *(member for member in self.waiting() if member.entry.run_id not in look.free)]

    def position(self, member: Member) -> int:
        """From 1: its place among those of its group that wait, or among all whose group has room."""
        return self._look().positions[member.entry.run_id]

    def why(self, member: Member) -> str:
        """What it waits for, as a sentence without an end."""
        group, look = member.entry.group, self._look()
        if member.entry.run_id in look.free:
            return f"waits for room: {len(self.running())} of {self.cap} runs at a time are running"
        running = look.running.get(group, [])
        others = f" and {len(running) - 3} more" if len(running) > 3 else ""
        held = f" ({', '.join(running[:3])}{others} running)" if running else ""
        return f"waits for earlier runs of {group}{held}"

    def view(self, line_id: str) -> LineView:
        return LineView(
            id=line_id,
            counter=self.counter,
            cap=self.cap,
            running=[_waiting(member) for member in self.running()],
            waiting=[_waiting(member) for member in self.order()],
        )

    # inside

    def _group(self, group: str) -> Iterator[Member]:
        return (m for m in self._members.values() if group and m.entry.group == group)

    def _look(self) -> _Standing:
        if self._standing is None:
            ready, ahead, positions = self._ready(), Counter[str](), dict[str, int]()
            for member in self.waiting():
                ahead[member.entry.group] += 1
                positions[member.entry.run_id] = ahead[member.entry.group]
            positions |= {member.entry.run_id: place for place, member in enumerate(ready, 1)}
            running = defaultdict[str, list[str]](list)
            for member in self.running():
                running[member.entry.group].append(member.entry.run_id)
            free = frozenset(member.entry.run_id for member in ready)
            self._standing = _Standing(ready, free, positions, dict(running))
        return self._standing

    def _ready(self) -> list[Member]:
        """Those whose group has room, in the order in which the cap lets them in."""
        owners = Counter(member.entry.owner for member in self.running())
        queues = defaultdict[str, deque[Member]](deque)
        for member in sorted(self._first_of_groups(), key=lambda m: (m.entry.priority, m.place)):
            queues[member.entry.owner].append(member)

        def first(owner: str) -> tuple[int, int, int, str]:
            best = queues[owner][0]
            return best.entry.priority, owners[owner], best.place, owner

        found: list[Member] = []
        heads = [first(owner) for owner in queues]
        heapq.heapify(heads)
        while heads:  # each that is let in counts for its owner
            owner = heapq.heappop(heads)[-1]
            found.append(queues[owner].popleft())
            owners[owner] += 1
            if queues[owner]:
                heapq.heappush(heads, first(owner))
        return found

    def _first_of_groups(self) -> Iterable[Member]:
        room: dict[str, int] = {}
        used = Counter(m.entry.group for m in self.running())
        for member in self.waiting():
            group = member.entry.group
            if not group:
                yield member
                continue
            if group not in room:
                room[group] = self.policy(group).limit - used[group]
            if room[group] > 0:
                room[group] -= 1
                yield member


def _age(member: Member) -> tuple[datetime, int]:
    """The older, the smaller: by its start, else by its number."""
    return member.entry.started_at or _UNTOLD, member.place


def _waiting(member: Member) -> Waiting:
    entry = member.entry
    return Waiting(
        run_id=entry.run_id,
        group=entry.group,
        counter=member.place,
        owner=entry.owner,
        priority=entry.priority,
    )
