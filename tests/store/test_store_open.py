"""Which store the settings open."""

import sys
from pathlib import Path

import pytest

from runyard.errors import ConfigError
from runyard.settings import Settings
from runyard.store.base import read
from runyard.store.open import open_store
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore


@pytest.mark.parametrize(("word", "kind"), [("posix", PosixStore), ("posixflat", PosixFlatStore)])
@pytest.mark.parametrize("durable", [True, False])
async def test_folders(tmp_path: Path, word: str, kind: type, durable: bool) -> None:
    settings = Settings.model_validate({"store": word, "state": tmp_path})
    store = open_store(settings, durable=durable)
    assert type(store) is kind
    await store.put("a/b", b"x")
    assert await read(open_store(settings), "a/b") == b"x"
    assert (tmp_path / "store" / "data").is_dir()


def test_a_bucket_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a bucket"):
        open_store(Settings(store="s3", state=tmp_path))


def test_a_bucket_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Runyard was installed without the extra."""
    for name in [name for name in sys.modules if name.startswith(("runyard.store.s3", "minio."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "minio", None)
    with pytest.raises(ConfigError, match="package `minio`") as caught:
        open_store(Settings(store="s3", state=tmp_path))
    assert "runyard[s3]" in caught.value.remedy
