"""The protocol of shared data, under every schedule; and with one thing wrong at a time, which has to be found.

The bound: two runs that share an item of two objects, a restart that shares it too, two cleanups, and each of the
five may crash once. Within it the search is exhaustive (see protocol_model.py for what is left out, and why that
leaves nothing out).
"""

import contextlib
import inspect
from collections.abc import Callable

import pytest
from protocol_model import (
    CLOSED,
    DATA,
    ITEM,
    TOLD,
    Broken,
    Call,
    Model,
    ModelStore,
    Program,
    cleanup,
    first_run,
    restart,
    second_run,
)

from runyard.errors import Conflict
from runyard.records import expiry, sharing

ALL: list[Program] = [first_run, second_run, restart, cleanup, cleanup]
Source = Callable[..., object]


@pytest.mark.promise(6)
def test_nothing_that_a_run_has_is_deleted_and_nothing_else_stays() -> None:
    found = Model(ALL).explore()
    assert found.states > 100_000
    assert found.ends > 10


@pytest.mark.promise(6)
@pytest.mark.parametrize(("programs", "crashes"), [(ALL, False), ([first_run, restart, cleanup, cleanup], True)])
def test_the_same_where_a_listing_is_no_snapshot(programs: list[Program], crashes: bool) -> None:
    """Each key is seen or not at the moment when the listing comes to it."""
    assert Model(programs, listing="lazy", crashes=crashes).explore().states > 5_000


@pytest.mark.promise(6)
def test_three_cleanups_at_once() -> None:
    """A stalled activity, its retry, and a cleanup that somebody asked for."""
    assert Model([first_run, restart, cleanup, cleanup, cleanup]).explore().states > 20_000


def test_a_cleanup_alone_takes_all_that_is_over() -> None:
    assert Model([first_run, cleanup], crashes=False).explore().states > 20


async def store_again(store: ModelStore) -> None:
    """What no run may do: where the first one's item is gone, make it anew under the same name."""
    await Call("wait", CLOSED + "a")
    if not await sharing.claim_kept(store, "b", ITEM):
        with contextlib.suppress(Conflict):
            await sharing.claim_new(store, "b", ITEM)
            await Call("told", f"{TOLD}b", hidden=True)
            for key in DATA:
                await store.put(key, b"")


def test_why_a_name_is_used_once() -> None:
    with pytest.raises(Broken):
        Model([first_run, store_again, cleanup, cleanup], crashes=False).explore()


# one thing wrong at a time

SECOND_LOOK = """        if found.runids:
            continue
"""

MUTATIONS: dict[str, tuple[Source, str, str]] = {
    "the runid object is written after the first read": (
        sharing.claim_kept,
        "await refer(store, item, run_id) and await has_any(store, paths.data(item))",
        "await has_any(store, paths.data(item)) and await refer(store, item, run_id)",
    ),
    "no second look after the tombstone": (sharing._delete_data, SECOND_LOOK, ""),
    "the second look comes before the tombstone": (
        sharing.sweep,
        "    await for_each(free,",
        "    gone = await _delete_data(store, _look(store, free), pace=pace)\n    await for_each(free,",
    ),
    "the tombstone goes before the data": (
        sharing.sweep,
        "    gone = await _delete_data",
        "    await delete_all(store, [paths.tombstone(item) for item in free])\n    gone = await _delete_data",
    ),
    "age instead of runid objects": (
        sharing._look,
        "        yield found",
        "        found.runids = [i for i in found.runids if i.size > 9]\n        yield found",
    ),
    "deletes that are not idempotent": (
        sharing.delete_all,
        "await store.delete_many(bulk)",
        "[await store.stat(key) for key in bulk]; await store.delete_many(bulk)",
    ),
    "who spares an item takes the tombstone away": (
        sharing._delete_data,
        SECOND_LOOK,
        SECOND_LOOK.replace("continue", "await store.delete(paths.tombstone(found.item)); continue"),
    ),
    "a tombstone is not looked for": (
        sharing.refer_all,
        "return {item for item in items if paths.tombstone(item) not in given_up}",
        "return set(items)",
    ),
    "no runid object at all": (sharing.refer_all, 'await store.put(paths.runid(item, run_id), b"")', "pass"),
    "runid objects stay": (sharing.release, "[info.key for info in runids]", "[]"),
    "the tombstone stays": (
        sharing.sweep,
        "    await delete_all(store, [paths.tombstone(item) for item in gone])\n",
        "",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, there, instead = MUTATIONS[name]
    source = inspect.getsource(function)
    assert source.count(there) == 1, "the code has changed: change the mutation too"
    found: dict[str, object] = {}
    exec(compile(source.replace(there, instead), f"<{name}>", "exec"), vars(sharing), found)
    changed = found[function.__name__]
    for module in (sharing, expiry):
        if hasattr(module, function.__name__):
            monkeypatch.setattr(module, function.__name__, changed)
    with pytest.raises(Broken):
        Model(ALL).explore()
