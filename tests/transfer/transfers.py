"""Runs worth exporting, and what a store has of them."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from temporalio.client import Client
from yard import working

from runyard.client import Run, Runyard
from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.spec.cleanup import Retention
from runyard.store import paths
from runyard.store.base import ObjectStore, read

RUNTIME = {"containers": [{"image": "none"}]}
SAVE = {"save_to_workspace": {"contents": [{"paths": ["made"]}]}}


def task(name: str, *steps: object, **fields: object) -> dict[str, object]:
    steps_ = [{"run": step} if isinstance(step, str) and step != "restore_workspace" else step for step in steps]
    return {"name": name, "runtime": RUNTIME, "steps": steps_, **fields}


def file(*tasks: dict[str, object], **fields: object) -> dict[str, object]:
    return {"runs": [{"name": "build", "tasks": list(tasks), **fields}]}


def whole(folder: Path) -> dict[str, object]:
    """Archives, outputs, a retry, a large log, and a task that fails as long as `good` is not there."""
    return file(
        task(
            "make",
            f"echo make >> {folder}/ran; head -c 2000000 /dev/urandom > made",
            "echo V=7 >> $RUNYARD_OUTPUT; echo hello",
            SAVE,
        ),
        task("loud", f"echo loud >> {folder}/ran; head -c 3000000 /dev/urandom | od -c -w60"),
        task("again", f"mkdir {folder}/once || exit 0; exit 3", retry={"limit": 1, "backoff": "10ms"}),
        task(
            "test",
            "restore_workspace",
            f'echo test >> {folder}/ran; test -s made; test "$V" = 7; test -e {folder}/good',
            depends=["make"],
            environment={"V": {"from_output": "make.V"}},
        ),
    )


async def failed_run(yard: Runyard, folder: Path, **fields: object) -> Run:
    run = await yard.start(whole(folder), project="web", owner="ann", **fields)  # type: ignore[arg-type]
    assert (await run.result()).cause == "1 of 4 tasks failed: test"
    return run


async def logs(run: Run, name: str) -> list[str]:
    return [str(line) async for line in run.logs(name)]


async def said(run: Run) -> list[str]:
    """What the second step of `make` has written."""
    return [str(line) async for line in run.logs("make", step=1)]


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def contents(store: ObjectStore, prefix: str) -> list[bytes]:
    """The bytes of the data below a prefix, whatever they are called."""
    return sorted([await read(store, key) for key in await keys(store, prefix) if "/data/" in key])


async def exported(yard: Runyard, run_id: str) -> bytes:
    target = io.BytesIO()
    made = await yard.export_run(run_id, target)
    assert made.size_bytes == len(target.getvalue())
    return target.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    """What any tar program sees."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar.getmembers()}  # type: ignore[union-attr]


def repacked(data: bytes, change: Callable[[dict[str, object], dict[str, bytes]], None]) -> bytes:
    """The file with other members, or with another index."""
    held = members(data)
    index = json.loads(held.pop("runyard-export.json"))
    change(index, held)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in {"runyard-export.json": json.dumps(index).encode(), **held}.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return out.getvalue()


def runids(run_id: str) -> str:
    return f"/runs/{paths.escape(run_id)}"


async def at_work(
    client: Client,
    store: ObjectStore,
    folder: Path,
    *,
    retention: Retention | None = None,
    secrets_file: Path | None = None,
) -> AsyncIterator[Runyard]:
    """A client of a store, and a worker for it with local processes."""
    settings = Settings(
        state=folder / "state-there",
        store_folder=folder / "store-there",
        executor="local",
        secrets_file=secrets_file,
    )
    executor = open_executor("local", settings)
    async with working(client, store, [executor], retention=retention):
        yield Runyard(client, store, settings=settings)
    await executor.close()
    await store.close()
