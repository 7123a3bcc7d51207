"""Workers that are wrong about the world: one was asleep and thinks a pod is still its own, one has a wrong clock.

They are real processes. The first is put to sleep by SIGSTOP; the clock is the C library's, for all that is in the
process (other_clock.c).
"""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lab import Lab
from lab_scene import LATE_CANCEL, Handle, Scene, counting, lines, open_scene
from lab_workers import counted_pods, kill, workers_of
from temporalio.client import Client

from runyard.reasons import Reason
from runyard.spec.run import RunView

pytestmark = [pytest.mark.kubernetes, LATE_CANCEL]

SOURCE = Path(__file__).with_name("other_clock.c")
NODE = "localhost"


@pytest.fixture
async def scene(lab: Lab, client: Client, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(lab, client, tmp_path) as ready:
        yield ready


async def taken_over(scene: Scene, handle: Handle, task: str, *, was: str) -> str:
    """Who has the task's pod, once it is somebody else than before."""
    async with asyncio.timeout(60):
        while (owner := await owner_of(scene, handle, task)) == was:
            await asyncio.sleep(0.1)
    return owner


async def owner_of(scene: Scene, handle: Handle, task: str) -> str:
    pod = await scene.pod(handle, task)
    body = await scene.core.read_namespaced_pod(pod.name, pod.namespace)
    return str(body.metadata.annotations["runyard.dev/owner"]).partition(" ")[0]


@pytest.mark.promise(2)
@pytest.mark.promise(4)
async def test_a_worker_that_slept_lets_go_of_the_pod_that_another_has(scene: Scene) -> None:
    async with workers_of(scene) as workers, counted_pods(scene) as pods:
        asleep = await workers.start()
        handle = await scene.start(workers.executor, [counting("long", 300), counting("short", 30)])
        await scene.begun(handle, "long")
        first = await owner_of(scene, handle, "long")
        asleep.send_signal(signal.SIGSTOP)
        try:
            await workers.start()
            await taken_over(scene, handle, "long", was=first)
        finally:
            asleep.send_signal(signal.SIGCONT)
        view = await scene.ended(handle)  # with both of them awake
        assert view.result == "success", view.tasks
        assert len(pods) == 2
        for name, count in (("long", 300), ("short", 30)):
            seal = await scene.seal(handle, name)
            assert seal is not None
            assert seal.complete, seal.truncated
            assert await scene.log(handle, name) == lines(name, count)
        await scene.gone(handle)
        assert asleep.returncode is None, "it let go, and works on"


@pytest.fixture(scope="session")
def other_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a clock of a process's own needs a C compiler, and there is no `cc`")
    library = tmp_path_factory.mktemp("clock") / "other_clock.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize("off_s", [-300, pytest.param(300, marks=pytest.mark.soak)])
async def test_a_worker_whose_clock_is_five_minutes_off(scene: Scene, other_clock: Path, off_s: int) -> None:
    """It places and follows tasks as any other; and what it has placed is not overdue for the next worker."""
    wrong = {"LD_PRELOAD": str(other_clock), "OTHER_CLOCK_S": str(off_s)}
    said = subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"], env=wrong, text=True)
    assert abs(float(said) - datetime.now(UTC).timestamp() - off_s) < 30, "the process has a clock of its own"
    save = {"save_to_workspace": {"contents": [{"paths": ["*"]}]}}
    plain = counting("plain", 20)
    plain["steps"] = [{"run": "echo kept >made"}, save, *plain["steps"]]
    never = counting("never", 1, pod={"node_selector": {"no": "such"}}, timeouts={"pending": "4s"})
    label = f"late-{scene.namespace}"
    late = counting("late", 20, pod={"node_selector": {label: "yes"}}, timeouts={"pending": "2m"})
    never["ignore_failure"] = True
    async with workers_of(scene) as workers, counted_pods(scene) as pods:
        skewed = await workers.start(**wrong)
        handle = await scene.start(workers.executor, [plain, never, late])
        await until_ended(scene, handle, "plain", "never")
        first = await owner_of(scene, handle, "late")
        await kill(skewed)
        await workers.start()
        await taken_over(scene, handle, "late", was=first)
        await scene.core.patch_node(NODE, {"metadata": {"labels": {label: "yes"}}})
        try:
            view = await scene.ended(handle)
        finally:
            await scene.core.patch_node(NODE, {"metadata": {"labels": {label: None}}})
        ends = {task.name: (task.status, task.reason) for task in view.tasks}
        assert ends == {
            "plain": ("success", Reason.SUCCESS),
            "never": ("failed", Reason.TIMEOUT_PENDING),
            "late": ("success", Reason.SUCCESS),
        }
        assert len(pods) == 3
        latest = datetime.now(UTC) + timedelta(minutes=1)
        for task in view.tasks:
            moments = [moment for moment in (task.queued_at, task.started_at, task.ended_at) if moment]
            assert moments == sorted(moments), task
            assert moments[-1] < latest, task
        assert await scene.log(handle, "plain", step=2) == lines("plain", 20)
        assert await scene.log(handle, "late") == lines("late", 20)
        await scene.gone(handle)


async def until_ended(scene: Scene, handle: Handle, *names: str) -> None:
    async with asyncio.timeout(90):
        while {
            task.name for task in (await handle.query("describe", result_type=RunView)).tasks if task.ended_at
        } != set(names):
            await asyncio.sleep(0.2)
