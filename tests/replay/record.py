"""Record the history of each shape of run, on a real server with the memory executor.

    python tests/replay/record.py

Only shapes that have no file yet are recorded: see test_replay.py for why.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import patch

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from runyard.executors.memory import MemoryExecutor
from runyard.spec.cleanup import CLEANUP, CLEANUP_ID, Retention, removal_id
from runyard.spec.group import root_line
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, ApprovalRequest, RunResult, RunView, TaskRequest
from runyard.store.posix import PosixStore
from runyard.temporal import CLOSING, connect
from workers.embedded import embedded_server
from workers.serve import build_workers, require_search_attributes

HERE = Path(__file__).parent / "histories"
Handle = WorkflowHandle[object, RunResult]


def task(name: str, step: str, **fields: object) -> dict[str, object]:
    return {"name": name, "runtime": {"containers": [{"image": "none"}]}, "steps": [{"run": step}], **fields}


async def nothing(handle: Handle) -> None:
    """Let it run."""


def when(status: str, then: Callable[[Handle], Awaitable[object]]) -> Callable[[Handle], Awaitable[None]]:
    async def act(handle: Handle) -> None:
        while all(t.status != status for t in (await handle.query("describe", result_type=RunView)).tasks):
            await asyncio.sleep(0.05)
        await then(handle)

    return act


async def retry_then_give_up(handle: Handle) -> None:
    await handle.execute_update("retry_task", TaskRequest(task="a", by="ann"))
    view = await handle.query("describe", result_type=RunView)
    while view.tasks[0].status != "held" or view.tasks[0].attempt < 2:
        await asyncio.sleep(0.05)
        view = await handle.query("describe", result_type=RunView)
    await handle.execute_update("cancel_task", TaskRequest(task="a", by="ann"))


async def cancel_at_its_end(handle: Handle) -> None:
    """In the moment between an execution's word that it ends and that end."""
    while await (seen := await handle.describe()).memo_value(CLOSING, "") != seen.run_id:
        await asyncio.sleep(0.05)
    await handle.cancel()


RETRY = {"limit": 2, "backoff": "10ms"}
DIAMOND = [
    task("a", "true"),
    task("b", "sleep 0.05", depends=["a"]),
    task("c", "true", depends=["a"]),
    task("d", "true", depends=["b", "c"]),
]
RESTARTED = [
    task("kept", "output V=1"),
    task("kept too", "true", depends=["kept"]),
    *(
        task(
            f"t{n}",
            "sleep 0.05",
            depends=["kept", *([f"t{n - 1}"] if n else [])],
            environment={"V": {"from_output": "kept.V"}},
        )
        for n in range(12)
    ),
]
CHAINS = [task(f"t{n}", "sleep 0.05", depends=[f"t{n - 4}"] if n >= 4 else []) for n in range(20)]
SHAPES: dict[str, tuple[dict[str, object], Callable[[Handle], Awaitable[None]]]] = {
    "success": ({"tasks": DIAMOND}, nothing),
    "failure": ({"tasks": [task("a", "exit 3"), task("b", "true", depends=["a"]), task("c", "true")]}, nothing),
    "retries": ({"tasks": [task("a", "exit 3", retry=RETRY), task("b", "vanish", retry={"infra": 1})]}, nothing),
    "approval": (
        {"tasks": [task("a", "true", approval=True)]},
        when("approval", lambda h: h.execute_update("approve", ApprovalRequest(task="a", by="ann"))),
    ),
    "reject": (
        {"tasks": [task("a", "true", approval={"expires": "1h"})]},
        when("approval", lambda h: h.execute_update("reject", ApprovalRequest(task="a", by="ann"))),
    ),
    "expiry": ({"tasks": [task("a", "true", approval={"expires": "50ms"})]}, nothing),
    "waits": (  # with a timer of its own for one of them
        {
            "tasks": [
                task(n, "true", approval={"expires": e}) for n, e in {"a": "1h", "b": "2s", "c": "1s"}.items()
            ]
        },
        when("failed", lambda h: h.execute_update("reject", ApprovalRequest(task="a", by="ann"))),
    ),
    "hold": ({"tasks": [task("a", "exit 1")], "on_failure": "hold"}, when("held", retry_then_give_up)),
    "cancel": (
        {"tasks": [task("a", "sleep 600"), task("b", "true", depends=["a"])]},
        when("running", Handle.cancel),
    ),
    "cancel_task": (
        {"tasks": [task("a", "sleep 600"), task("b", "true", depends=["a"])]},
        when("running", lambda h: h.execute_update("cancel_task", TaskRequest(task="a", by="ann"))),
    ),
    "fail_fast": ({"tasks": [task("a", "exit 1"), task("b", "sleep 600")], "fail_fast": True}, nothing),
    "run_timeout": ({"tasks": [task("a", "sleep 600")], "timeout": "200ms"}, nothing),
    "kept": ({"tasks": [task("a", "exit 1", keep_failed_for="100ms")]}, nothing),
    "outputs": (
        {
            "tasks": [
                task("a", "output V=1"),
                task("b", "true", depends=["a"], environment={"V": {"from_output": "a.V"}}),
            ]
        },
        nothing,
    ),
    "wide": ({"tasks": [task(f"t{n}", "sleep 0.3") for n in range(30)], "concurrency": 25}, nothing),
    "restarted": ({"tasks": RESTARTED}, nothing),
    "continued": ({"tasks": CHAINS}, nothing),  # before executions announced their end
    "announced": ({"tasks": CHAINS}, nothing),  # before they left a view of the run for that moment
    "left": ({"tasks": CHAINS}, nothing),  # before deletes that fetches have begun were confirmed together
    "gathered": (  # some confirmed after a moment, some when the run had nothing else to do
        {
            "tasks": [
                task("a", "true"),
                task("b", "sleep 1.5"),
                task("c", "exit 1"),
                task("d", "true", depends=["b"]),
            ]
        },
        nothing,
    ),
    "gathered_left": ({"tasks": CHAINS}, nothing),
    "withdrawn": ({"tasks": [*CHAINS, task("slow", "sleep 600")]}, cancel_at_its_end),
}
LONG = ("continued", "announced", "left", "gathered_left", "restarted", "withdrawn")


GROUP = "/project/recorded/branch/main"
GROUP_AGAIN = "/project/recorded-again/branch/main"


async def start(client: Client, name: str, run: dict[str, object], **request: object) -> Handle:
    return await client.start_workflow(
        WORKFLOW,
        {"file": {"runs": [{"name": name, **run}]}, "executor": "memory", **request},
        id=f"recorded-{name}",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )


async def start_again(client: Client, run_id: str, tasks: list[str]) -> Handle:
    return await client.start_workflow(
        WORKFLOW,
        {"restart": {"run": run_id, "tasks": tasks}},
        id=f"{run_id}-again",
        task_queue=RUNS_QUEUE,
        result_type=RunResult,
    )


async def save(client: Client, workflow_id: str, name: str) -> None:
    executions = [e async for e in client.list_workflows(f"WorkflowId = '{workflow_id}'")]
    executions.sort(key=lambda e: e.start_time)
    for number, execution in enumerate(executions, start=1):
        history = await client.get_workflow_handle(workflow_id, run_id=execution.run_id).fetch_history()
        stem = f"{name}-{number}" if len(executions) > 1 else name
        (HERE / f"{stem}.json").write_text(history.to_json() + "\n")
    print(name, len(executions))


async def record_shape(client: Client, name: str) -> None:
    run, act = SHAPES[name]
    with (
        patch("activities.run.HISTORY_EVENTS", 60 if name in LONG else 4_000),
        patch("activities.run.TIMERS", 1 if name == "waits" else 500),
        patch("activities.run.CLOSING_MS", 10_000 if name == "withdrawn" else 150),
    ):
        handle = await start(client, name, run)
        await act(handle)
        with contextlib.suppress(WorkflowFailureError):
            await handle.result()
        if name == "restarted":
            handle = await start_again(client, handle.id, ["t0"])
            await handle.result()
    await save(client, handle.id, name)


async def waits(handle: Handle) -> None:
    while not (await handle.query("describe", result_type=RunView)).position:
        await asyncio.sleep(0.05)


async def record_turns(client: Client) -> None:
    """Runs of one group, each of which waits, is skipped, superseded or cancelled; and their line, continued."""
    group = {"group": GROUP}
    slow, quick = {"tasks": [task("a", "sleep 600")]}, {"tasks": [task("a", "true")]}

    with patch("activities.group.HISTORY_EVENTS", 30):
        handles = [await start(client, "turn", quick, **group)]
        await handles[0].result()
        handles += [await start(client, "turn_superseded", slow, **group)]
        await when("running", nothing)(handles[-1])
        handles += [await start(client, "turn_skipped", quick, **group, group_policy="skip-if-running")]
        await handles[-1].result()
        handles += [await start(client, "turn_cancelled", quick, **group)]
        await waits(handles[-1])
        await handles[-1].cancel()
        handles += [await start(client, "turn_waited", quick, **group, group_policy="cancel-superseded")]
        for handle in handles:
            with contextlib.suppress(WorkflowFailureError):
                await handle.result()
    for handle in handles:
        await save(client, handle.id, handle.id.removeprefix("recorded-"))
    await save(client, root_line(GROUP), "line")


async def record_again(client: Client) -> None:
    """An id that is used again while its first run is in the line; a cancel of a run that has nothing to do."""
    group = {"group": GROUP_AGAIN}
    slow, quick = {"tasks": [task("a", "sleep 600")]}, {"tasks": [task("a", "true")]}
    skipped = {"tasks": [task("a", "true", when={"branch": "another"})]}
    first = await start(client, "turn_first", slow, **group)
    await when("running", nothing)(first)
    dead = await start(client, "turn_again", quick, **group)
    await waits(dead)
    await dead.terminate()
    again = await start(client, "turn_again", quick, **group)
    await waits(again)
    idle = await start(client, "turn_nothing", skipped, **group)
    await waits(idle)
    await idle.cancel()
    await idle.result()
    await first.cancel()
    await again.result()
    await save(client, idle.id, "turn_nothing")
    await save(client, root_line(GROUP_AGAIN), "line_again")


async def record_cleanup(folder: Path) -> None:
    """A full cleanup that continues as new, and one of a run, on a server that suggests it early."""
    early = {"limit.historyCount.suggestContinueAsNew": 12}
    retention = Retention(runs_s=0, runs_per_group=1)
    async with contextlib.AsyncExitStack() as stack:
        with patch.dict("runyard.temporal.DYNAMIC_CONFIG", early):
            server = await stack.enter_async_context(embedded_server(folder / "server", ephemeral=True))
        client = await connect(address=server.address)
        await require_search_attributes(client)
        store = PosixStore(folder / "store")
        for worker in build_workers(client, store, [MemoryExecutor()], retention=retention):
            await stack.enter_async_context(worker)
        await (await start(client, "cleaned", {"tasks": [task("a", "true")]})).result()
        await client.execute_workflow(CLEANUP, {}, id=CLEANUP_ID, task_queue=RUNS_QUEUE)
        handle = await start(client, "removed", {"tasks": [task("a", "true")]})
        await handle.result()
        removal = removal_id(handle.id)
        await client.execute_workflow(CLEANUP, {"runs": [handle.id]}, id=removal, task_queue=RUNS_QUEUE)
        await save(client, CLEANUP_ID, "cleanup")
        await save(client, removal, "cleanup_run")


async def main() -> None:
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            embedded_server(Path(folder) / "server", ephemeral=True) as server,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connect(address=server.address)
            await require_search_attributes(client)
            for worker in build_workers(client, PosixStore(Path(folder) / "store"), [MemoryExecutor()]):
                await stack.enter_async_context(worker)
            for name in SHAPES:
                if not (list(HERE.glob(f"{name}.json")) or list(HERE.glob(f"{name}-1.json"))):
                    await record_shape(client, name)
            if not (HERE / "line-1.json").exists():
                await record_turns(client)
            if not (HERE / "line_again.json").exists():
                await record_again(client)
        if not (HERE / "cleanup-1.json").exists():
            await record_cleanup(Path(folder) / "early")


if __name__ == "__main__":
    asyncio.run(main())
