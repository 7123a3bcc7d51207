"""What a cleanup must know of the whole before it begins: which runs are too many, and what is too much.

Both answers are times before which runs are over, so that the cleanup itself needs to hold nothing: one for each
group that has too many runs, and one for all where the logs and archives are too large. The size is counted by
the hour, by when data were written; exact sizes run by run would have to say to whom shared data belong.
"""

import heapq
from collections import defaultdict
from datetime import datetime, timedelta

from runyard.errors import Corrupt, NotFound
from runyard.records.fates import end_of, group_of
from runyard.records.runs import read_result
from runyard.store import paths
from runyard.store.base import ObjectStore

_HOUR = timedelta(hours=1)


async def find_cutoffs(store: ObjectStore, *, runs_per_group: int) -> dict[str, datetime]:
    """For each group with more ended runs than that: when the oldest one ended that stays."""
    newest: dict[str, list[datetime]] = defaultdict(list)
    too_many = set()
    async for info in store.list(paths.RUNS):
        if not info.key.endswith("/result.json"):
            continue
        try:
            view = await read_result(store, paths.unescape(info.key.split("/")[1]))
        except (NotFound, Corrupt):
            continue
        end = end_of(view)
        if end is None or not (group := group_of(view)):
            continue
        if len(newest[group]) < runs_per_group:
            heapq.heappush(newest[group], end)
        else:
            too_many.add(group)
            heapq.heappushpop(newest[group], end)
    return {group: newest[group][0] for group in sorted(too_many)}


async def find_oldest(store: ObjectStore, *, total_bytes: int) -> datetime | None:
    """So that what was written since takes no more than that; None where everything does."""
    hours: dict[datetime, int] = defaultdict(int)
    for kind in (paths.LOGS, paths.ARCHIVES):
        async for info in store.list(kind):
            hours[info.modified_at.replace(minute=0, second=0, microsecond=0)] += info.size
    total = 0
    for hour in sorted(hours, reverse=True):
        total += hours[hour]
        if total > total_bytes:
            return hour + _HOUR
    return None
