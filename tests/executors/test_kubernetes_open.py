"""The connection to a cluster: what an opening that is cancelled leaves, and who tries a request again."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from runyard.errors import ClusterUnavailable
from runyard.executors.base import PodRef
from runyard.executors.kubernetes.api import Api
from runyard.executors.kubernetes.executor import KubernetesExecutor
from runyard.executors.kubernetes.pod import Rules


def kubeconfig(place: Path, port: int) -> Path:
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    words = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
    path = place / "kubeconfig"
    path.write_text(json.dumps({**words, "current-context": "x", "kind": "Config", "apiVersion": "v1"}))
    return path


async def test_a_cancel_while_it_opens_leaves_no_watch_and_no_connection(tmp_path: Path) -> None:
    asked, hung_up = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.release()
        await reader.read()  # until the other side hangs up
        hung_up.release()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        config = kubeconfig(tmp_path, server.sockets[0].getsockname()[1])
        executor = KubernetesExecutor(
            rules=Rules(agent_image="none", agent_command=[]), kubeconfig=config, namespace="default"
        )
        before = asyncio.all_tasks()
        using = asyncio.create_task(executor.delete(PodRef(name="p", uid="u")))
        async with asyncio.timeout(60):
            for _ in range(2):  # the watch of pods, and the list of quotas
                await asked.acquire()
            using.cancel()
            await asyncio.wait([using])
            for _ in range(2):
                await hung_up.acquire()
        assert using.cancelled()
        left = [task.get_name() for task in asyncio.all_tasks() - before if "say_nothing" not in repr(task)]
        assert left == []
        await executor.close()


async def test_who_reads_or_deletes_waits_for_an_ill_cluster_no_longer_than_who_creates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries are ours alone. The library's client has a loop of its own, which knows nothing of our patience."""
    monkeypatch.setattr("runyard.executors.kubernetes.api._PATIENCE_S", 0.5)
    heard: Counter[str] = Counter()

    async def fail(request: web.Request) -> web.Response:
        heard[f"{request.method} pods"] += 1
        return web.json_response({"kind": "Status", "code": 500, "reason": "InternalError"}, status=500)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fail)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = await Api.open(kubeconfig=kubeconfig(tmp_path, runner.addresses[0][1]), context="", namespace="default")
    try:
        async with asyncio.timeout(10):
            asked = (api.get("pods", "p"), api.delete("pods", "p", uid="u"), api.create("pods", {}))
            ends = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await api.close()
        await runner.cleanup()
    assert [type(each) for each in ends] == [ClusterUnavailable] * 3
    assert set(heard) == {"GET pods", "DELETE pods", "POST pods"}
    assert heard.total() > 3, "they were tried again"
    assert api.requests == heard
