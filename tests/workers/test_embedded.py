"""The embedded server: what it is told, and who dies with whom."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

from runyard.errors import Conflict, ServerUnavailable
from runyard.temporal import SEARCH_ATTRIBUTES
from workers import embedded, folder
from workers.embedded import embedded_server

PARENT = """
import asyncio, sys
from pathlib import Path
from workers.embedded import embedded_server

async def main():
    async with embedded_server(Path(sys.argv[1]), port=None, headless=True) as server:
        print(server.process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_knows_our_names_and_keeps_closed_runs(tmp_path: Path) -> None:
    done = []
    async with embedded_server(
        tmp_path, ephemeral=True, headless=True, meanwhile=lambda: done.append(1)
    ) as server:
        service = server.client.operator_service
        known = await service.list_search_attributes(ListSearchAttributesRequest(namespace="default"))
        assert set(SEARCH_ATTRIBUTES) <= set(known.custom_attributes)
        space = await server.client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace="default")
        )
        assert space.config.workflow_execution_retention_ttl.ToTimedelta().days == 30
        assert server.ui_url == ""
    assert done == [1]
    assert list(tmp_path.iterdir()) == [], "nothing is left of an ephemeral one"


async def test_its_environment_and_profile_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", "for another server")
    monkeypatch.setenv("TEMPORAL_TLS", "true")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "elsewhere")
    async with embedded_server(tmp_path, ephemeral=True, headless=True) as server:
        assert server.client.namespace == "default"


async def test_a_port_that_is_taken_between_look_and_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once choose the same port: one gets it, and the other never talks to its neighbour's server."""
    async with embedded_server(tmp_path, ephemeral=True, headless=True) as first:
        taken = int(first.address.rpartition(":")[2])
        choose, seen = embedded._choose_port, []

        def stale(port: int | None, *, usual: int, not_this: int = 0) -> int:
            seen.append(choose(port, usual=usual, not_this=not_this) if seen else taken)
            return seen[-1]

        monkeypatch.setattr(embedded, "_choose_port", stale)
        async with embedded_server(tmp_path, ephemeral=True, headless=True) as second:
            assert second.address != first.address
        assert len(seen) == 2
        seen.clear()
        with pytest.raises(Conflict, match=f"port {taken} of"):
            async with embedded_server(tmp_path, port=taken, ephemeral=True, headless=True):
                pass


async def test_a_start_that_stumbles_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server loses a race for a port inside itself, which has nothing to do with us."""
    real, tries = embedded._command, []

    def command(*words: object, **more: object) -> list[str]:
        tries.append(1)
        panic = ["/bin/sh", "-c", "echo 'panic: failed assigning ephemeral port' >&2; exit 2"]
        return panic if len(tries) == 1 else real(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(embedded, "_command", command)
    async with embedded_server(tmp_path, ephemeral=True, headless=True):
        assert len(tries) == 2


async def test_a_server_that_never_starts_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = ["/bin/sh", "-c", "echo 'panic: no room' >&2; echo 'goroutine 1' >&2; exit 2"]
    monkeypatch.setattr(embedded, "_command", lambda *_, **__: panic)
    with pytest.raises(ServerUnavailable, match="ended at its start: panic: no room"):
        async with embedded_server(tmp_path, ephemeral=True, headless=True):
            pass


@pytest.mark.promise(5)
async def test_a_killed_parent_takes_its_server_along(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    # the next one waits for the lock that the server holds until it is gone
    async with embedded_server(tmp_path, headless=True) as server:
        assert server.process.pid != group
        assert not _alive(group)


async def test_a_server_that_does_not_go_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_STOP_S", 0.5)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    os.killpg(group, signal.SIGSTOP)  # it hangs
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    async with embedded_server(tmp_path, headless=True):
        assert not _alive(group)


async def test_the_database_of_an_older_server_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporal.version").write_text("1.2.3")
    (tmp_path / "temporal.db").write_bytes(b"older")
    folder._keep_old_database(tmp_path)
    assert (tmp_path / "1.2.3-temporal.db").read_bytes() == b"older"
    assert (tmp_path / "temporal.version").read_text() == folder._version()


def _alive(group: int) -> bool:
    """Whether a process of the group is left; one that only waits for its parent to notice does not count."""
    rows = subprocess.run(["ps", "-ax", "-o", "pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
    return any(row.split()[0] == str(group) and "Z" not in row for row in rows)
