"""What must not be in a snapshot, what one must not do to a task's folder, and what one may cost."""

import functools
import gzip
import json
import os
import subprocess
import sys
import threading
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agent.agent_stage import SHELLS, Stage
from snapshot.snapshot_scene import RUN, Scene, git, init, looks

from runyard.records.snapshots import (
    Manifest,
    Packer,
    PackFacts,
    encode_manifest,
    locate_snapshot,
    write_item,
)
from runyard.snapshot.history import without_credentials
from runyard.snapshot.take import Taken
from runyard.spec.plan import CloneStep, Snapshot, Source

REPOSITORY, TOKEN = "0" * 32, "0" * 8


async def everything(scene: Scene) -> bytes:
    """All that is in the store, unpacked: every content, every part of the listing, every manifest."""
    found = b""
    async for info in scene.store.list("snapshots/"):
        data = Path(scene.store.source(info.key, expires_s=60)).read_bytes()
        found += data
        if data[:2] == b"\x1f\x8b":
            found += gzip.decompress(data)
        while data:  # streams of zlib one after the other, and contents that are stored as they are
            stream = zlib.decompressobj()
            try:
                plain = stream.decompress(data)
            except zlib.error:
                data = data[1:]
                continue
            found += plain
            if plain[:1] == b"x":  # an object of git, in its loose form
                found += zlib.decompressobj().decompress(plain)
            data = stream.unused_data
    return found


async def test_no_credentials_of_the_configuration(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", file="this is to be found")
    secret = "s3cr3t-t0ken"
    git(checkout, "remote", "add", "origin", f"https://ann:{secret}@git.example/x.git?private_token={secret}")
    git(checkout, "remote", "add", "other", f"https://{secret}@git.example/y.git")
    git(checkout, "config", "http.extraHeader", f"Authorization: Basic {secret}")
    git(checkout, "config", f"url.https://{secret}@git.example/.insteadOf", "https://git.example/")
    git(checkout, "config", "credential.helper", f"!echo password={secret}")
    (checkout / ".git/hooks/post-checkout").write_text(f"#!/bin/sh\necho {secret}\n")
    taken = await scene.take(checkout, ignored=True)
    stored = await everything(scene)
    assert b"this is to be found" in stored
    assert secret.encode() not in stored
    copy, _ = await scene.restore(taken)
    assert git(copy, "remote", "get-url", "origin") == "https://git.example/x.git"
    assert git(copy, "remote") == "origin"


ADDRESSES = [
    ("https://ann:pw@host:8443/x.git", "https://host:8443/x.git"),
    ("https://token@host/x.git#part", "https://host/x.git"),
    ("ssh://git@host:22/x.git", "ssh://git@host:22/x.git"),
    ("ssh://git:pw@host/x.git", "ssh://git@host/x.git"),
    ("git@host:team/x.git", "git@host:team/x.git"),
    ("ann:pw@host:x.git", ""),
    ("/srv/git/x.git", "/srv/git/x.git"),
    ("ext::sh -c pw% %S", ""),
    ("other://pw@host/x", ""),
    ("https://[broken", ""),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_an_address_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


# a listing that somebody else made


async def forge(scene: Scene, *lines: list[object]) -> Taken:
    """A snapshot with these lines; contents are named by their text."""
    packer = Packer({}, TOKEN)
    texts = {text for line in lines if line[0] == "f" for text in line[4]}  # type: ignore[attr-defined]
    ids = {text: packer.add(text.encode()) for text in texts}
    pack = packer.close()
    packs = [pack] if pack else []
    for line in lines:
        if line[0] == "f":
            places = [packer.known[ids[text]] for text in line[4]]  # type: ignore[attr-defined]
            line[4] = [[0, place.offset, place.length, place.size] for place in places]
    part = packer.add(json.dumps([[each.id for each in packs], *lines]).encode())
    listing = packer.close()
    assert listing is not None
    place = packer.known[part]
    facts = [PackFacts(id=each.id, size=each.size) for each in (listing, *packs)]
    manifest = encode_manifest(Manifest(packs=facts, listing=[(0, place.offset, place.length, place.size)]), TOKEN)
    for item in (*packs, listing, manifest):
        await write_item(scene.store, RUN, REPOSITORY, item)
    return Taken(snapshot=Snapshot(repository=REPOSITORY, id=manifest.id), files=0, size=0, sent=0)


@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out", "a//b", ".", "", "a/./b"])
async def test_a_path_that_leaves_the_folder(scene: Scene, path: str) -> None:
    copy, log = await scene.restore(await forge(scene, ["f", path, 0o644, None, ["text"]]), code=1)
    assert "would leave the folder" in log
    assert not (copy.parent / "out").exists()


async def test_nothing_is_written_through_a_link(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    lines: list[list[object]] = [["l", "way", str(outside)], ["f", "way/file", 0o644, None, ["text"]]]
    copy, _ = await scene.restore(await forge(scene, *lines), code=1)
    assert not list(outside.iterdir())
    assert (copy / "way/file").read_text() == "text"


async def test_bits_that_give_rights_are_not_restored(scene: Scene, tmp_path: Path) -> None:
    checkout = init(tmp_path / "one", file="1")
    (checkout / "file").chmod(0o4755)
    copy, _ = await scene.restore(await scene.take(checkout))
    assert (copy / "file").stat().st_mode & 0o7777 == 0o755


# what it costs


MEASURED = """
import asyncio, pathlib, resource, sys
from runyard.snapshot.take import take_snapshot
from runyard.store.posix import PosixStore

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

here = pathlib.Path(sys.argv[1])
asyncio.run(take_snapshot(PosixStore(here / "warm"), here / "small", run_id="r"))
before = peak()
taken = asyncio.run(take_snapshot(PosixStore(here / "store"), here / "large", run_id="r"))
print(peak() - before, taken.sent, taken.snapshot.model_dump_json())
"""


@pytest.mark.parametrize(
    ("size", "noise"),
    [
        pytest.param(320 << 20, True, id="320 MiB of noise"),
        pytest.param(5 << 30, False, id="5 GiB of holes", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
async def test_memory_is_flat(scene: Scene, tmp_path: Path, size: int, noise: bool) -> None:
    init(tmp_path / "small", file="1")
    large = init(tmp_path / "large", file="1")
    with open(large / "large", "wb") as file:
        if noise:
            file.writelines(os.urandom(1 << 24) for _ in range(size >> 24))
        file.truncate(size)
    words = [sys.executable, "-c", MEASURED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, sent, snapshot = done.stdout.split(" ", 2)
    assert int(grown) < 150 << 20
    assert int(sent) >= size or not noise
    taken = Taken(snapshot=Snapshot.model_validate_json(snapshot), files=2, size=size, sent=int(sent))
    copy, _ = await scene.restore(taken)
    same = subprocess.run(["cmp", str(copy / "large"), str(large / "large")], check=False)
    assert same.returncode == 0


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing."""


async def test_packs_that_lie_behind_addresses(scene: Scene, tmp_path: Path) -> None:
    """As a bucket's are: the agent downloads each, verifies it, and leaves nothing of it beside the checkout."""
    checkout = init(tmp_path / "one", file="1")
    for number in range(3):
        (checkout / f"large{number}").write_bytes(os.urandom(12 << 20))
    taken = await scene.take(checkout)
    stored = await locate_snapshot(scene.store, taken.snapshot, expires_s=60)
    assert len(stored.packs) >= 3
    handler = functools.partial(_Quiet, directory=str(scene.store.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        packs = [
            pack.model_copy(update={"source": f"{base}/{Path(pack.source).relative_to(scene.store.folder)}"})
            for pack in stored.packs
        ]
        stage = Stage(tmp_path / "stage", SHELLS[0], sys.executable)
        snapshot = stored.model_copy(update={"packs": packs})
        code = stage.play(CloneStep(), source=Source(snapshot=taken.snapshot), snapshot=snapshot)
        server.shutdown()
    assert code == 0, stage.log(0)
    assert looks(stage.cwd) == looks(checkout)
    assert {path.name for path in stage.dir.iterdir()} <= {"req", "res", "log.0", "output"}
    stage.end()
