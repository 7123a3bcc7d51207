"""The escaped names, and that they are one to one."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.errors import ConfigError, InvalidRequest
from runyard.store.base import check_key
from runyard.store.posixflat import PosixFlatStore, _FlatNames

NAMES = [
    ("s3/is/not/a/file", "s3%2Fis%2Fno/t%2Fa%2Ffile.f"),
    ("☺☺☺☺☺☺☺☺", "☺☺☺☺☺☺☺☺.f"),
    ("a", "a"),
    ("a/b", "a%2Fb"),
    ("100%", "100%25"),
    ("a%2Fb", "a%252Fb"),
    ("12345678", "12345678.f"),
    ("12345678.f", "12345678/.f"),
    ("123456.f", "123456.f.f"),
    ("12345678.", "12345678/%2E"),
    ("12345678..", "12345678/%2E%2E"),
    ("1234567812345678", "12345678/12345678.f"),
]


@pytest.mark.parametrize(("key", "path"), NAMES)
async def test_names(tmp_path: Path, key: str, path: str) -> None:
    store = PosixFlatStore(tmp_path / "store", durable=False)
    await store.put(key, b"x")
    files = [os.path.join(where, name) for where, _, names in os.walk(tmp_path / "store/data") for name in names]
    assert [os.path.relpath(file, tmp_path / "store/data") for file in files] == [path]
    assert store.source(key, expires_s=1) == files[0]


@given(st.text(st.sampled_from("ab./%f2E☺"), min_size=1, max_size=40))
def test_names_are_one_to_one(text: str) -> None:
    try:
        key = check_key(text)
    except InvalidRequest:
        return
    names = _FlatNames()
    *folders, file = names.parts(key)
    pieces = [names.piece(name, folder=True) for name in folders] + [names.piece(file, folder=False)]
    assert "".join(piece or "\0" for piece in pieces) == key
    assert file not in (b".", b"..")
    assert not {b".", b"..", b""} & set(folders)


async def test_names_of_others_are_no_objects(tmp_path: Path) -> None:
    store = PosixFlatStore(tmp_path / "store", durable=False)
    data = tmp_path / "store/data"
    for name in ("123456789", "12345678", "a%2fb", "%41", ".f", os.fsdecode(b"\xff")):
        (data / name).write_bytes(b"")
    (data / "folder").mkdir()
    (data / "folder/x").write_bytes(b"")
    assert [info.key async for info in store.list("")] == [".f"]


def test_tasks_cannot_write_into_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="posixflat"):
        PosixFlatStore(tmp_path / "store").target("logs/t/", expires_s=1)
