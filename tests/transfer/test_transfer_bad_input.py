"""Files that are no export, or not any more: refused with a code, and nothing of them stays."""

import asyncio
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from transfers import exported, file, keys, members, repacked, task

from runyard.client import Runyard
from runyard.errors import DamagedExport, InvalidExport, InvalidRequest, NewerExport, NotFound
from runyard.transfer.tarball import CHUNK

Change = Callable[[dict[str, object], dict[str, bytes]], None]
_SMALL = file(
    task("t", "echo hello", "head -c 300000 /dev/urandom | od -c", {"save_to_workspace": {"contents": []}})
)


async def small(yard: Runyard) -> bytes:
    run = await yard.start(_SMALL)
    assert (await run.result()).result == "success"
    return await exported(yard, run.id)


async def refuse(yard: Runyard, data: bytes, error: type[InvalidRequest], match: str | None = None) -> None:
    with pytest.raises(error, match=match) as caught:
        await yard.import_run(io.BytesIO(data))
    assert caught.value.code == error.code
    assert caught.value.remedy
    left = [key for key in await keys(yard.store) if "/data/" not in key]
    assert left == [], "no runid object, no record"


def name_like(held: dict[str, object], ending: str) -> str:
    return next(name for name in held if name.endswith(ending))


def outside(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "seal.json", "logs/../../../../etc/passwd")


def absolute(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "seal.json", "/etc/passwd")


def other_task(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "seal.json", f"logs/{'a' * 20}/data/1/seal.json")


def other_run(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "plan.jsonl", "runs/other/plan.jsonl")


def runid(index: dict[str, object], held: dict[str, bytes]) -> None:
    name = name_like(held, "seal.json")
    _rename(index, held, "seal.json", name.partition("/data/")[0] + "/runs/other")


def cache(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "seal.json", "caches/group/key.json")


def keep(index: dict[str, object], held: dict[str, bytes]) -> None:
    _rename(index, held, "request.json", f"runs/{index['run']}/keep")


def _rename(index: dict[str, object], held: dict[str, bytes], ending: str, new: str) -> None:
    old = name_like(held, ending)  # type: ignore[arg-type]
    for member in index["members"]:  # type: ignore[attr-defined]
        if member["name"] == old:
            member["name"] = new
    items = [(new if name == old else name, data) for name, data in held.items()]
    held.clear()
    held.update(items)


def no_result(index: dict[str, object], held: dict[str, bytes]) -> None:
    index["members"] = [m for m in index["members"] if not m["name"].endswith("result.json")]  # type: ignore[attr-defined]


def twice(index: dict[str, object], _: dict[str, bytes]) -> None:
    index["members"].append(index["members"][-1])  # type: ignore[attr-defined]


def no_members(index: dict[str, object], _: dict[str, bytes]) -> None:
    index["members"] = "none"


def other_format(index: dict[str, object], _: dict[str, bytes]) -> None:
    index["format"] = "something else"


@pytest.mark.parametrize(
    "change",
    [outside, absolute, other_task, other_run, runid, cache, keep, no_result, twice, no_members, other_format],
)
async def test_names_that_lead_elsewhere(here: Runyard, there: Runyard, change: Change) -> None:
    await refuse(there, repacked(await small(here), change), InvalidExport)
    assert await keys(there.store) == [], "not a byte is written"


async def test_a_later_version_is_named(here: Runyard, there: Runyard) -> None:
    def later(index: dict[str, object], _: dict[str, bytes]) -> None:
        index.update(version=2, made_by="9.1.0", members={"of": "another form"})

    await refuse(there, repacked(await small(here), later), NewerExport, "version 2, written by Runyard 9.1.0")


async def test_more_than_the_index_says(here: Runyard, there: Runyard) -> None:
    def more(_: dict[str, object], held: dict[str, bytes]) -> None:
        held["logs/more"] = b"x"

    await refuse(there, repacked(await small(here), more), InvalidExport, "more than its index says")


async def test_a_link_in_place_of_a_file(here: Runyard, there: Runyard) -> None:
    data = await small(here)
    name, out = name_like(members(data), "seal.json"), io.BytesIO()  # type: ignore[arg-type]
    with tarfile.open(fileobj=out, mode="w") as tar:
        for each, content in members(data).items():
            facts = tarfile.TarInfo(each)
            facts.size = len(content)
            if each == name:
                facts.type, facts.linkname, facts.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(facts, io.BytesIO(content))
    await refuse(there, out.getvalue(), InvalidExport, "no plain file")


async def test_cut_anywhere(here: Runyard, there: Runyard) -> None:
    data = await small(here)
    last = len(data.rstrip(b"\0"))
    for at in [*range(1, last - 1, max(1, last // 40)), last // 2, last - 1]:
        with pytest.raises(InvalidExport) as caught:
            await there.import_run(io.BytesIO(data[:at]))
        assert caught.value.code in ("damaged_export", "invalid_export"), at
    assert [key for key in await keys(there.store) if "/data/" not in key] == []
    await refuse(there, data[: last // 2], DamagedExport, "missing")


async def test_any_byte_changed(here: Runyard, there: Runyard) -> None:
    """It is found out, or it is one that no reader heeds: the time of a member, what fills a block."""
    data = await small(here)
    where = {name: data.index(content) for name, content in members(data).items() if len(content) > 20}
    for name, at in where.items():
        changed = bytearray(data)
        changed[at + 10] ^= 1
        with pytest.raises(InvalidExport) as caught:
            await there.import_run(io.BytesIO(bytes(changed)))
        assert name.endswith("export.json") or caught.value.code == "damaged_export", name
    assert [key for key in await keys(there.store) if "/data/" not in key] == []


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\0" * 10240, os.urandom(4096), b"\x1f\x8b" + bytes(2000), b"PK\3\4" + bytes(2000)],
    ids=["empty", "x", "zeros", "noise", "gzip", "zip"],
)
async def test_what_is_no_tar(there: Runyard, data: bytes) -> None:
    await refuse(there, data, InvalidExport)


async def test_a_tar_of_something_else(there: Runyard, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(Path(__file__), "file.py")
    await refuse(there, out.getvalue(), InvalidExport, "first member")


async def test_a_header_that_asks_for_all_memory(there: Runyard) -> None:
    class Endless(io.RawIOBase):
        """A header of 64 GiB, and as many bytes as anybody wants."""

        given = 0

        def read(self, size: int = -1, /) -> bytes:
            assert size <= CHUNK
            facts = tarfile.TarInfo("pax")
            facts.type, facts.size = tarfile.XHDTYPE, 64 << 30
            head = facts.tobuf(tarfile.GNU_FORMAT)[self.given : self.given + size]
            self.given += size
            assert self.given < 64 << 20
            return head + b"x" * (size - len(head))

    with pytest.raises(InvalidExport, match="larger than any"):
        await there.import_run(Endless())  # type: ignore[arg-type]


async def test_paths_that_cannot_be(here: Runyard, there: Runyard, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await there.import_run(tmp_path / "none.tar")
    with pytest.raises(InvalidRequest):
        await there.import_run(tmp_path)
    run = await here.start(_SMALL)
    await run.result()
    for path in (tmp_path, tmp_path / "no" / "such" / "folder.tar"):
        with pytest.raises(InvalidRequest, match="cannot be written"):
            await here.export_run(run.id, path)
    assert not list(tmp_path.glob("**/*.part"))


async def test_a_link_stays_one_and_a_pipe_is_written_to(here: Runyard, tmp_path: Path) -> None:
    """To replace what has the name would put a file in the place of /dev/null, for the whole machine."""
    run = await here.start(_SMALL)
    assert (await run.result()).result == "success"
    (tmp_path / "there.tar").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "there.tar")
    await here.export_run(run.id, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    whole = (tmp_path / "there.tar").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").read_bytes))
    async with asyncio.timeout(30):
        await here.export_run(run.id, tmp_path / "pipe")
        assert len(await reading) == len(whole)
    assert (tmp_path / "pipe").is_fifo()
