"""A direct run: what it is started from is a checkout of this machine, as it is."""

import asyncio
from pathlib import Path

from runyard.client.account import account
from runyard.snapshot.repository import find_repository
from runyard.snapshot.take import Taken, take_snapshot
from runyard.spec.plan import Plan, Source
from runyard.spec.run import RunRequest
from runyard.store.base import ObjectStore


async def find_source(folder: Path, given: Source | None = None) -> Source:
    """Branch, tag and commit of the checkout around ``folder``, for `when`; what is ``given`` wins.

    Raises NotFound, InvalidRequest (no checkout), GitFailed.
    """
    repository = await asyncio.to_thread(find_repository, folder)
    head = await asyncio.to_thread(repository.head)
    found = Source(branch=head.branch, tag=head.tag, commit=head.commit)
    if given is None:
        return found
    return found.told(branch=given.branch, tag=given.tag, ref=given.ref, commit=given.commit)


async def with_snapshot(
    store: ObjectStore, request: RunRequest, plan: Plan, folder: Path, *, run_id: str, ignored: bool
) -> tuple[RunRequest, Taken]:
    """The request with the checkout around ``folder``, which is now in the store and which this run refers to.

    Its caches are the user's own for this repository, unless the request or the run file say something else.
    """
    taken = await take_snapshot(store, folder, run_id=run_id, ignored=ignored)
    source = request.source.model_copy(update={"snapshot": taken.snapshot, "url": "", "local": False})
    own = f"user/{request.owner or account()}/repo/{taken.snapshot.repository}"
    group = request.cache_group or plan.run.cache_group or own
    return request.model_copy(update={"source": source, "cache_group": group}), taken
