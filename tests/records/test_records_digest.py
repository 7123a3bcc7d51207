"""Counting bytes and lines however they are cut."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.records.digest import Digest


async def digest_of(chunks: list[bytes]) -> Digest:
    found = Digest()
    for chunk in chunks:
        await found.add(chunk)
    return found


@given(st.lists(st.text(st.sampled_from("ab\né \r"), max_size=8).map(str.encode), max_size=8))
async def test_as_if_it_were_one_piece(chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    found = await digest_of(chunks)
    assert found.bytes == len(data)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.lines == len(data.split(b"\n")) - (not data or data.endswith(b"\n"))
    assert found.ends_line == (not data or data.endswith(b"\n"))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"one\ntwo\n\n  \n", "two"),
        (b"progress 1%\rprogress 2%\r", "progress 2%"),
        (b"x" * 5000, "x" * 200),
        (("é" * 5000).encode(), "é" * 200),
        (b"\xff\n", "�"),
    ],
)
async def test_the_last_line(data: bytes, line: str) -> None:
    for size in (1, 7, 10_000):
        found = await digest_of([data[at : at + size] for at in range(0, len(data), size)])
        assert found.last_line == line
