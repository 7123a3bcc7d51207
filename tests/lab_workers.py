"""Workers on the lab that can be killed: processes of their own, as their users start them."""

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.aio.watch import Watch
from lab_scene import HOST_NETWORK, Scene

from runyard.executors.kubernetes.template import Manifest, merge

ROOT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Workers:
    """`runyard worker` in processes of their own, which serve the runs too. All are dead in the end."""

    scene: Scene
    executor: str
    template: Manifest = field(default_factory=dict)
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def __aenter__(self) -> "Workers":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.started:
            await kill(process)

    async def start(self, **environment: str) -> asyncio.subprocess.Process:
        """Another one, at work."""
        log = self.scene.settings.state / f"worker-{len(self.started)}.log"
        program = "from runyard.cli import main; main()"
        with log.open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, "worker", "--executor", self.executor),
                env=self._environment() | environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                cwd=ROOT,
            )
        self.started.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 120)
        assert b"serving" in line, log.read_text()[-2000:]
        return process

    def _environment(self) -> dict[str, str]:
        scene, settings = self.scene, self.scene.settings
        template = settings.state / "template.yml"
        template.write_text(json.dumps(merge(HOST_NETWORK, self.template)))
        keep = {
            name: value for name, value in os.environ.items() if not name.startswith(("RUNYARD_", "TEMPORAL_"))
        }
        return keep | {
            "PYTHONPATH": str(ROOT),
            "TEMPORAL_ADDRESS": scene.client.service_client.config.target_host,
            "RUNYARD_STATE": str(settings.state),
            "RUNYARD_SETTINGS": str(settings.state / "none.toml"),
            "RUNYARD_STORE": "s3",
            "RUNYARD_S3_ENDPOINT": settings.s3_endpoint,
            "RUNYARD_S3_BUCKET": settings.s3_bucket,
            "RUNYARD_S3_ACCESS_KEY": settings.s3_access_key,
            "RUNYARD_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
            "RUNYARD_KUBERNETES_KUBECONFIG": str(scene.lab.kubeconfig),
            "RUNYARD_KUBERNETES_NAMESPACE": scene.namespace,
            "RUNYARD_KUBERNETES_AGENT_IMAGE": scene.lab.image_runyard,
            "RUNYARD_KUBERNETES_TEMPLATE": str(template),
            "RUNYARD_KUBERNETES_ALLOW": json.dumps(["node_selector"]),
        }


async def kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def workers_of(scene: Scene, **more: Any) -> Workers:
    return Workers(scene=scene, executor=f"kubernetes-{uuid.uuid4().hex[:8]}", **more)


@contextlib.asynccontextmanager
async def counted_pods(scene: Scene) -> AsyncIterator[set[str]]:
    """The uids of all pods that are ever made in the scene's namespace while the block runs."""
    uids: set[str] = set()

    async def watch() -> None:
        async with Watch().stream(scene.core.list_namespaced_pod, scene.namespace) as events:
            async for event in events:
                uids.add(event["object"].metadata.uid)

    task = asyncio.create_task(watch())
    try:
        yield uids
    finally:
        ended = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert not ended, "the watch ended before the block"
