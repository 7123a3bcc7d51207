"""Headers that the agent makes and reads itself, against `tarfile`, which it asks for all others."""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterable

import pytest

from runyard.agent import Forward, Heads, members

NAMES = ("a", "d/b", "\u00e9", "x" * 90 + "/" + "y" * 90, "n" * 99, "n" * 100, "n" * 101)
TIMES = (0, 1_700_000_000, 8**11 - 1, 1.5)
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
Facts = tuple[str, int, int, int, bytes, str]


def facts(member: tarfile.TarInfo) -> Facts:
    name = member.name.rstrip("/")
    return name, member.size, member.mode, int(member.mtime), member.type, member.linkname


def archive(kind: int, chance: random.Random) -> bytes:
    """Files, folders and links in disorder; some with global headers, of which each member inherits."""
    out = io.BytesIO()
    inherited = {"comment": "x"} if kind == tarfile.PAX_FORMAT and chance.random() < 0.2 else None
    with tarfile.open(fileobj=out, mode="w", format=kind, pax_headers=inherited) as tar:
        for _ in range(40):
            member = tarfile.TarInfo(chance.choice(NAMES[:-1] if kind == tarfile.USTAR_FORMAT else NAMES))
            member.mode, member.mtime = chance.choice((0o644, 0o755, 0)), chance.choice(TIMES)
            member.type = chance.choice((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE))
            member.linkname = "z" if member.type == tarfile.SYMTYPE else ""
            content = os.urandom(chance.choice((0, 1, 511, 512, 513, 5000))) if member.isreg() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def ours(data: bytes) -> list[Facts] | str:
    return told(lambda: members(Forward(io.BytesIO(data))))


def theirs(data: bytes) -> list[Facts] | str:
    return told(lambda: tarfile.TarFile("", "r", Forward(io.BytesIO(data))))  # type: ignore[arg-type]


def told(read: Callable[[], Iterable[tarfile.TarInfo]]) -> list[Facts] | str:
    try:
        return [facts(member) for member in read()]
    except (tarfile.TarError, EOFError) as error:
        return type(error).__name__


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(20))
def test_members_are_those_that_tarfile_reads(kind: int, seed: int) -> None:
    chance = random.Random(seed)
    data = archive(kind, chance)
    assert ours(data) == theirs(data)
    for cut in chance.sample(range(1, len(data)), 20):
        assert ours(data[:cut]) == theirs(data[:cut])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [file.read() for member in tar if member.isreg() and (file := tar.extractfile(member))]
    stream, contents = Forward(io.BytesIO(data)), []
    for member in members(stream):
        if member.isreg():
            view, at = memoryview(bytearray(member.size)), 0
            while at < member.size:
                at += stream.take(view[at:])
            contents.append(bytes(view))
    assert contents == expected


def test_headers_are_those_that_tarfile_makes() -> None:
    tar, heads = tarfile.TarFile("", "w", io.BytesIO(), tarfile.PAX_FORMAT), Heads()
    for name in NAMES:
        for size in (0, 1, 8**11 - 1, 8**11):
            for mtime in TIMES[:3]:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.mode = size, mtime, 0o755
                assert heads.make(tar, member) == member.tobuf(tar.format, tar.encoding, tar.errors or "strict")


@pytest.mark.parametrize("at", [0, 100, 124, 136, 148, 156, 257, 345])
def test_a_header_that_is_damaged_is_no_member(at: int) -> None:
    """Its checksum says so; what is behind it is not read as anything else."""
    data = bytearray(archive(tarfile.USTAR_FORMAT, random.Random(3)))
    second = next(
        offset
        for offset in range(512, len(data), 512)
        if data[offset + 257 : offset + 262] == b"ustar" and data[offset + 156 : offset + 157] == b"0"
    )
    data[second + at] ^= 0x15
    assert ours(bytes(data)) == theirs(bytes(data))
