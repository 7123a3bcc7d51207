"""What every store promises. A store joins by one line in `STORES`."""

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from chunks import whole
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from minio_server import MinioServer

from runyard.errors import Conflict, Corrupt, InvalidRequest, NotFound, StoreUnavailable
from runyard.store.base import ObjectStore, check_key, read
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of store, how to make an empty one, and whether `a` and `a/b` can both be objects.

    Of a bucket that is not promised: it is for the server to say.
    """

    make: Callable[[Path], ObjectStore]
    flat: bool | None


STORES = {
    "posix": Kind(lambda folder: PosixStore(folder, durable=False), flat=False),
    "posix-durable": Kind(PosixStore, flat=False),
    "posixflat": Kind(lambda folder: PosixFlatStore(folder, durable=False), flat=True),
}
S3 = "s3"


@pytest.fixture(params=[*STORES, S3])
def kind(request: pytest.FixtureRequest) -> Kind:
    return kind_of(request.param, request)


def kind_of(name: str, request: pytest.FixtureRequest) -> Kind:
    """A bucket's store needs a server; a folder names a prefix there."""
    if name != S3:
        return STORES[name]
    minio: MinioServer = request.getfixturevalue("minio")
    return Kind(lambda folder: minio.store(s3_prefix=str(folder).strip("/")), flat=None)


@pytest.fixture
async def store(kind: Kind, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = kind.make(tmp_path / "store")
    yield store
    await store.close()


async def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix, start_after=start_after)]


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    before = datetime.now(UTC)
    put = await store.put("a/b.txt", b"hello")
    assert (put.key, put.size) == ("a/b.txt", 5)
    assert before - timedelta(seconds=2) <= put.modified_at <= datetime.now(UTC) + timedelta(seconds=2)
    assert await read(store, "a/b.txt") == b"hello"
    found = await store.stat("a/b.txt")
    assert (found.key, found.size) == (put.key, put.size)
    assert abs(found.modified_at - put.modified_at) <= timedelta(seconds=2)


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("runs/r", b"")
    await store.put("runs/r", b"")
    assert await read(store, "runs/r") == b""
    assert (await store.stat("runs/r")).size == 0
    with pytest.raises(Conflict):
        await store.put("runs/r", b"", if_absent=True)
    await store.put("runs/r", b"no longer")
    await store.put("runs/r", b"")
    assert await read(store, "runs/r") == b""


async def test_a_later_put_replaces(store: ObjectStore) -> None:
    await store.put("k", b"a much longer first version")
    await store.put("k", b"second")
    assert await read(store, "k") == b"second"
    assert (await store.stat("k")).size == 6


@pytest.mark.parametrize("size", [None, 3_500_007])
async def test_streams_are_stored_byte_by_byte(store: ObjectStore, size: int | None) -> None:
    chunks = [bytes([n % 251]) * 500_001 for n in range(7)]
    await store.put("big", stream(*chunks), size=size)
    digest = hashlib.sha256()
    async for chunk in store.get("big"):
        digest.update(chunk)
    assert digest.digest() == hashlib.sha256(b"".join(chunks)).digest()


async def test_an_empty_stream_is_an_empty_object(store: ObjectStore) -> None:
    assert (await store.put("empty", stream())).size == 0


@pytest.mark.parametrize("size", [0, 4, 6])
async def test_another_number_of_bytes_than_announced_is_corrupt(store: ObjectStore, size: int) -> None:
    for data in (b"12345", stream(b"123", b"45")):
        with pytest.raises(Corrupt, match="announced"):
            await store.put("k", data, size=size)
    assert await keys(store) == []


async def test_a_stream_that_fails_leaves_what_was_there(store: ObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1_000_000
        raise OSError("the network went away")

    await store.put("k", b"first")
    with pytest.raises(OSError, match="network"):
        await store.put("k", broken())
    assert await read(store, "k") == b"first"
    assert await keys(store) == ["k"]
    assert await store.discard_unfinished(older_than_s=0) == 0


async def test_a_cancelled_put_leaves_nothing(store: ObjectStore) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for n in itertools.count():
            if n == 100:  # by then a part is on its way, where there are parts
                begun.set()
            yield b"x" * 300_000

    task = asyncio.create_task(store.put("k", endless()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await keys(store) == []
    assert await store.discard_unfinished(older_than_s=0) == 0


async def test_what_nobody_finishes_is_found_and_discarded(store: ObjectStore) -> None:
    """Here its writer lives, and is told; that of a killed one is the same to the store."""
    half, go_on = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1_000_000
        half.set()
        await go_on.wait()
        yield b"end"

    task = asyncio.create_task(store.put("k", halting()))
    await half.wait()
    assert await store.discard_unfinished(older_than_s=3600) == 0
    assert await store.discard_unfinished(older_than_s=0) == 1
    assert await store.discard_unfinished(older_than_s=0) == 0
    go_on.set()
    with pytest.raises(StoreUnavailable):
        await task
    assert await keys(store) == []


@pytest.mark.parametrize("total", [10, 3_000_000])
async def test_ranges(store: ObjectStore, total: int) -> None:
    data = bytes(n % 256 for n in range(total))
    await store.put("k", data)
    for offset, length in [(0, 0), (0, 3), (4, None), (total - 1, 5), (total, None), (total + 7, 2)]:
        end = None if length is None else offset + length
        assert await read(store, "k", offset=offset, length=length) == data[offset:end]
    with pytest.raises(InvalidRequest):
        await read(store, "k", offset=-1)


async def test_what_is_not_there(store: ObjectStore) -> None:
    await store.put("a/b", b"x")
    for key in ("nothing", "a", "a/b/c", "a/c", "a/b/c/d"):
        with pytest.raises(NotFound):
            await store.stat(key)
        with pytest.raises(NotFound):
            await read(store, key)
        await store.delete(key)
    assert await keys(store) == ["a/b"]
    assert await keys(store, "a/b/") == await keys(store, "b") == await keys(store, "a/b/c/d") == []


async def test_delete(store: ObjectStore) -> None:
    for key in ("a/b/c", "a/d"):
        await store.put(key, b"x")
    await store.delete("a/b/c")
    await store.delete("a/b/c")
    assert await keys(store) == ["a/d"]
    await store.put("a/b", b"the name of a folder that is gone")
    assert await keys(store) == ["a/b", "a/d"]


async def test_stat_many(store: ObjectStore) -> None:
    for key in ("a/b/c", "a/b/d", "a/e", "f"):
        await store.put(key, key.encode())
    assert await store.stat_many([]) == {}
    found = await store.stat_many(["f", "a/b/d", "a/missing", "a/e", "no/such/folder", "a/b", "f/x", "a/b/c", "f"])
    assert found == {key: await store.stat(key) for key in ("a/b/c", "a/b/d", "a/e", "f")}
    with pytest.raises(InvalidRequest):
        await store.stat_many(["f", "a/../b"])


async def test_list_many(store: ObjectStore) -> None:
    for key in ("a-b/runs/1", "a/data/x", "a/runs/1", "a/runs/2", "b/runs/1", "c", "d/runs/1/2", "u"):
        await store.put(f"t/{key}", b"x")
    assert [info async for info in store.list_many([])] == []
    folders = ["t/Z/runs/", "t/a-b/runs/", "t/a/runs/", "t/aa/runs/", "t/c/runs/", "t/d/runs/", "t/e/runs/"]
    found = [info async for info in store.list_many(folders)]
    assert [info.key for info in found] == ["t/a-b/runs/1", "t/a/runs/1", "t/a/runs/2", "t/d/runs/1/2"]
    assert found == [info for folder in folders async for info in store.list(folder)]
    assert [info.key async for info in store.list_many(["t/a/"])] == ["t/a/data/x", "t/a/runs/1", "t/a/runs/2"]


async def test_list_many_of_2500(store: ObjectStore) -> None:
    names = [f"many/{n:04}/{kind}/x" for n in range(1_250) for kind in ("data", "runs")]
    await asyncio.gather(*(store.put(key, b"") for key in names))
    wanted = [f"many/{n:04}/runs/" for n in range(0, 1_250, 2)]
    assert [info.key async for info in store.list_many(wanted)] == [folder + "x" for folder in wanted]


async def test_delete_many(store: ObjectStore) -> None:
    for key in ("a/b/c", "a/b/d", "a/e", "f", "stays/x"):
        await store.put(key, b"x")
    await store.delete_many([])
    await store.delete_many(["f", "a/b/d", "a/missing", "a/e", "no/such/folder", "a/b/c", "f"])
    assert await keys(store) == ["stays/x"]
    await store.delete_many(["f", "a/b/d"])
    await store.put("a", b"the name of a folder that is gone")
    assert await keys(store) == ["a", "stays/x"]


async def test_empty_objects_of_one_moment_are_objects_of_their_own(store: ObjectStore) -> None:
    names = [f"many/{n}/runs/r" for n in range(300)]
    made = await asyncio.gather(*(store.put(key, b"") for key in names))
    assert [info.key for info in made] == names
    await store.put(names[0], b"replaced")
    await store.delete(names[1])
    assert (await read(store, names[0]), await read(store, names[2])) == (b"replaced", b"")
    again = await asyncio.gather(*(store.put(key, b"") for key in names))
    assert {info.size for info in again} == {0}
    assert sorted(await keys(store)) == sorted(names)
    assert await read(store, names[0]) == b""


async def test_delete_many_takes_no_folder_for_an_object_nor_an_object_for_a_folder(store: ObjectStore) -> None:
    for key in ("folder/x", "object"):
        await store.put(key, b"x")
    await store.delete_many(["folder", "object/x", "object/y/z"])
    assert await keys(store) == ["folder/x", "object"]


async def test_delete_many_of_2500(store: ObjectStore) -> None:
    names = [f"many/{n % 7}/{n:04}" for n in range(2_500)]
    await asyncio.gather(*(store.put(key, b"") for key in [*names, "many/3/stays"]))
    await store.delete_many(names)
    assert await keys(store) == ["many/3/stays"]


async def test_delete_many_of_odd_keys(store: ObjectStore) -> None:
    odd = [f"{n}/{key.strip('/')}" for n, key in enumerate(ODD)]
    for key in odd:
        await store.put(key, b"x")
    await store.delete_many(odd)
    assert await keys(store) == []


@pytest.mark.parametrize("key", ["", "a/../b", "nul\0", "x" * 1025])
async def test_delete_many_looks_at_all_keys_before_it_begins(store: ObjectStore, key: str) -> None:
    await store.put("a/b", b"x")
    with pytest.raises(InvalidRequest):
        await store.delete_many(["a/b", key])
    assert await keys(store) == ["a/b"]


async def test_deletes_in_bulk_beside_puts_and_each_other(store: ObjectStore) -> None:
    """A folder that gets empty is removed while others write into it, or remove it too."""
    stay = [f"busy/{n % 3}/stays{n}" for n in range(30)]
    go = [f"busy/{n % 3}/goes{n}" for n in range(60)]
    await asyncio.gather(*(store.put(key, b"x") for key in go))
    await asyncio.gather(*(store.delete_many(go) for _ in range(3)), *(store.put(key, b"x" * 100) for key in stay))
    assert await keys(store) == sorted(stay)


async def test_a_reader_keeps_the_version_it_began_with(store: ObjectStore) -> None:
    await store.put("k", b"a" * 3_000_000)
    chunks = store.get("k")
    first = await anext(chunks)
    await store.put("k", b"b" * 3_000_000)
    assert first + await whole(chunks) == b"a" * 3_000_000


ODD = [
    "-dash",
    "a b/c d",
    "a%2Fb",
    "a.f",
    "12345678",
    "12345678.f",
    "1234567/",
    "...",
    "quote'\"`$(x)\\",
    "new\nline",
    "tab\there",
    "Ünïcödé/☺☺☺☺☺☺☺☺",
    "e\u0301 and \u00e9",
    "😀/" * 20 + "end",
    "x" * 255,
    "12345678/..hidden",
    "1234567/.a/..b",
    "\x7f\x01",
]


@pytest.mark.parametrize("key", [key.strip("/") for key in ODD])
async def test_odd_keys(store: ObjectStore, key: str) -> None:
    await store.put(key, key.encode())
    assert await read(store, key) == key.encode()
    assert await keys(store) == [key]
    assert await keys(store, key) == [key]
    assert await keys(store, key[:-1]) == [key]
    assert await keys(store, "", start_after=key[:-1]) == [key]
    assert await keys(store, "", start_after=key) == []
    await store.delete(key)
    assert await keys(store) == []


BAD = ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "../a", "a/.", "nul\0", "x" * 1025, "é" * 513, "\ud800"]


@pytest.mark.parametrize("key", BAD)
async def test_bad_keys_are_refused_and_the_store_is_not_touched(store: ObjectStore, key: str) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put(key, b"x"),
        lambda: store.put(key, stream(b"x"), if_absent=True),
        lambda: store.stat(key),
        lambda: store.delete(key),
        lambda: read(store, key),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            await call()
    assert await keys(store) == []


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../", "a//", "nul\0/", "\ud800/", "x" * 300 + "/"])
async def test_a_prefix_that_no_key_has_lists_nothing(store: ObjectStore, prefix: str) -> None:
    await store.put("a/b", b"x")
    assert await keys(store, prefix) == []


TREE = ["a", "a-b", "a.b/c", "a.b/d", "a0", "ab/c", "ab/c.d/e", "ab/c0", "b/1", "b/10", "b/2", "é", "😀/x", "z"]


async def test_lists_in_the_order_of_the_keys_bytes(store: ObjectStore) -> None:
    for key in reversed(TREE):
        await store.put(key, b"x")
    ordered = sorted(TREE, key=str.encode)
    assert await keys(store) == ordered
    every_prefix = {key[:end] for key in TREE for end in range(len(key) + 1)} | {"c", "ab/d", "b/1/"}
    starts = ["", *TREE, "a/", "a~", "ab/", "b/1/", "zz", "\U0010ffff"]
    for prefix in every_prefix:
        for start in starts:
            want = [key for key in ordered if key.startswith(prefix) and key > start]
            assert await keys(store, prefix, start) == want, (prefix, start)


async def test_a_folder_sorts_by_its_slash(store: ObjectStore) -> None:
    names = ["a!/x", "a-b", "a/b", "a0", "a\x01c/z"]
    for key in names:
        await store.put(key, b"")
    assert await keys(store) == sorted(names)


async def test_a_listing_given_up_half_way_holds_nothing(store: ObjectStore) -> None:
    for n in range(600):
        await store.put(f"many/{n:04d}", b"")
    listing = store.list("many/")
    assert (await anext(listing)).key == "many/0000"
    await listing.aclose()  # type: ignore[attr-defined]
    assert len(await keys(store, "many/", "many/0300")) == 299


async def test_writing_during_a_listing_harms_nothing(store: ObjectStore) -> None:
    for n in range(600):
        await store.put(f"d{n % 30:02d}/{n:04d}", b"")
    seen = []
    async for info in store.list(""):
        seen.append(info.key)
        await store.delete(info.key)
        if len(seen) % 50 == 0:
            await store.put(f"c/{len(seen)}", b"")
    assert seen == sorted(f"d{n % 30:02d}/{n:04d}" for n in range(600))
    assert await keys(store, "d") == []


async def test_exactly_one_of_many_writers_is_first(store: ObjectStore) -> None:
    for round_ in range(20):
        key = f"locks/{round_}"
        datas: list[bytes | AsyncIterator[bytes]] = [str(n).encode() for n in range(8)]
        datas += [stream(b"1", str(n).encode()) for n in range(4)]
        ends = await asyncio.gather(*(store.put(key, d, if_absent=True) for d in datas), return_exceptions=True)
        assert sum(isinstance(end, Conflict) for end in ends) == 11
        kept = await read(store, key)
        with pytest.raises(Conflict, match="already there"):
            await store.put(key, b"late", if_absent=True)
        assert await read(store, key) == kept


async def test_a_stream_for_a_key_that_is_taken_is_not_read(store: ObjectStore) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("nobody wants it")
        yield b""

    await store.put("k", b"x")
    with pytest.raises(Conflict):
        await store.put("k", unread(), if_absent=True)


async def test_readers_never_see_half_of_an_object(store: ObjectStore) -> None:
    versions = [bytes([n]) * (200_000 + n) for n in range(10)]
    await store.put("k", versions[0])
    done = False

    async def watch() -> None:
        while not done:
            assert await read(store, "k") in versions

    async def write() -> None:
        for version in versions * 3:
            await store.put("k", stream(version[:1000], version[1000:]))

    watchers = [asyncio.create_task(watch()) for _ in range(3)]
    await write()
    done = True
    await asyncio.gather(*watchers)


async def test_puts_and_deletes_beside_each_other_keep_every_put(store: ObjectStore) -> None:
    """Folders are pruned and made again under each other's hands; what was put last is there."""

    async def work(worker: int) -> None:
        for n in range(60):
            key = f"x/y/{worker % 3}/{worker}"
            await store.put(key, str(n).encode())
            assert await read(store, key) == str(n).encode()
            await store.delete(key)

    await asyncio.gather(*(work(worker) for worker in range(9)))
    assert await keys(store) == []


async def test_an_object_and_a_folder_of_one_name(store: ObjectStore, kind: Kind) -> None:
    await store.put("a/b", b"1")
    await store.put("c", b"2")
    if kind.flat is None:
        for key in ("a", "c/d"):
            with contextlib.suppress(Conflict):
                await store.put(key, b"3")
        assert [await read(store, key) for key in ("a/b", "c")] == [b"1", b"2"]
        return
    if kind.flat:
        await store.put("a", b"3")
        await store.put("c/d", b"4")
        assert await keys(store) == ["a", "a/b", "c", "c/d"]
        return
    for if_absent in (False, True):
        with pytest.raises(Conflict, match="objects below `a/`"):
            await store.put("a", b"3", if_absent=if_absent)
        with pytest.raises(Conflict, match="its part `c` is an object"):
            await store.put("c/d/e", b"4", if_absent=if_absent)
    with pytest.raises(Conflict, match="objects below `a/`"):
        await store.put("a", b"")
    assert await keys(store) == ["a/b", "c"]
    await store.delete("a")
    assert await keys(store) == ["a/b", "c"]


def test_check_key_gives_the_key() -> None:
    assert check_key("logs/x/data") == "logs/x/data"


# The same, by machine: any sequence of calls, against a dict.

_part = st.text(st.sampled_from("ab-.0/%é😀"), min_size=1, max_size=6)
_keys = st.lists(_part, min_size=1, max_size=4).map("/".join)
_near = st.sampled_from(["a", "a/b", "a/b/c", "a-", "a-/b", "ab", "a.f", "aaaaaaaa", "aaaaaaaa/b", "aaaaaaaab"])
_any_key = _near | _keys


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dict that says what it must answer."""

    kind: Kind

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.model: dict[str, bytes] = {}

    @initialize()
    def open(self) -> None:
        self.store = self.kind.make(Path(self.folder.name))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    def run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.loop.run_until_complete(wait())

    def clashes(self, key: str) -> bool:
        return any(key.startswith(f"{there}/") or there.startswith(f"{key}/") for there in self.model)

    def is_refused(self, key: str) -> type[Exception] | None:
        try:
            check_key(key)
        except InvalidRequest:
            return InvalidRequest
        return Conflict if self.clashes(key) and not self.kind.flat else None

    @rule(key=_any_key, data=st.binary(max_size=20), if_absent=st.booleans(), streamed=st.booleans())
    def put(self, key: str, data: bytes, if_absent: bool, streamed: bool) -> None:
        assume(self.kind.flat is not None or not self.clashes(key))
        refused = self.is_refused(key) or (Conflict if if_absent and key in self.model else None)
        with pytest.raises(refused) if refused else contextlib.nullcontext():
            self.run(self.store.put(key, stream(data) if streamed else data, if_absent=if_absent))
            self.model[key] = data

    @rule(key=_any_key)
    def delete(self, key: str) -> None:
        with contextlib.suppress(InvalidRequest):
            self.run(self.store.delete(key))
        self.model.pop(key, None)

    @rule(key=_any_key, offset=st.integers(0, 25), length=st.none() | st.integers(0, 25))
    def get(self, key: str, offset: int, length: int | None) -> None:
        try:
            found = self.run(read(self.store, key, offset=offset, length=length))
        except (NotFound, InvalidRequest):
            assert key not in self.model
        else:
            assert found == self.model[key][offset : None if length is None else offset + length]

    @rule(prefix=st.just("") | _any_key, start=st.just("") | _any_key)
    def list(self, prefix: str, start: str) -> None:
        found = self.run(keys(self.store, prefix, start))
        assert found == sorted(key for key in self.model if key.startswith(prefix) and key > start)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.kind.make(Path(self.folder.name))


@pytest.mark.parametrize("name", ["posix", "posixflat", S3])
def test_any_sequence_of_calls(name: str, request: pytest.FixtureRequest) -> None:
    machine = type("Machine", (StoreMachine,), {"kind": kind_of(name, request)})
    quick = settings(
        max_examples=60 if name != S3 else 6,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(machine, settings=quick)
