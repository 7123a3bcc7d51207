"""An executor whose opening is cancelled leaves nothing open: the next use opens it anew."""

import asyncio
import json
from pathlib import Path

from runyard.executors.base import PodRef
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
