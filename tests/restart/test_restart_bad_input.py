"""Restarts of what cannot be restarted, or not in the way that was meant: each ends with a sentence.

Through the client, which judges first, and as plain JSON, where the worker is the only judge.
"""

import asyncio
import json
import uuid
from pathlib import Path

import pytest
from restarts import file, status, tasks_of
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from yard import Yard

from runyard.client import Run, Runyard
from runyard.errors import Conflict, InvalidRequest, InvalidRunFile, NotFound, RunyardError
from runyard.records.runs import read_plan
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunView
from runyard.store import paths
from runyard.store.base import ObjectStore, read

SAVE = {"save_to_workspace": {"contents": [{"paths": ["**"]}]}}


def task(name: str, *steps: object, **fields: object) -> dict[str, object]:
    lines = [{"run": step} if isinstance(step, str) else step for step in steps]
    return {"name": name, "runtime": {"containers": [{"image": "none"}]}, "steps": lines, **fields}


TASKS = (
    task("make", "output V=1", SAVE),
    task("test", "exit 1", depends=["make"]),
    task("publish", "true", depends=["test"]),
)


@pytest.fixture
def fast(client: Client, store: ObjectStore, yard: Yard, tmp_path: Path) -> Runyard:
    """A client and a worker with the memory executor."""
    return Runyard(client, store, settings=Settings(state=tmp_path, executor="memory"))


async def failed(fast: Runyard, *tasks: dict[str, object]) -> Run:
    run = await fast.start(file(*(tasks or TASKS)))
    assert (await run.result()).result == "failed"
    return run


async def as_json(client: Client, request: dict[str, object]) -> ApplicationError:
    """What the worker says of a request that must not become a run."""
    handle = await client.start_workflow(
        WORKFLOW, request, id=f"json-{uuid.uuid4().hex[:12]}", task_queue=RUNS_QUEUE
    )
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    view = await handle.query("describe", result_type=RunView)
    assert view.phase == "setuperror"
    return cause


async def refused(
    fast: Runyard, client: Client, run_id: str, error: type[RunyardError], words: str, **restart: object
) -> RunyardError:
    """The client and the worker say the same."""
    with pytest.raises(error, match=words) as caught:
        await fast.restart(run_id, **restart)  # type: ignore[arg-type]
    said = await as_json(client, {"restart": {"run": run_id, **restart}})
    assert (said.type, said.message.split("\n")[0]) == (error.code, caught.value.message)
    return caught.value


async def delete(store: ObjectStore, prefix: str) -> None:
    for key in [info.key async for info in store.list(prefix)]:
        await store.delete(key)


async def restarted(fast: Runyard, run: Run, **more: object) -> dict[str, str]:
    """What the restart says of each task: the run from which it is kept, or why it runs again."""
    again = await fast.restart(run.id, **more)  # type: ignore[arg-type]
    await again.result()
    return {name: task.kept_from or task.again for name, task in tasks_of(await again.describe()).items()}


async def test_an_unknown_run(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    error = await refused(fast, client, f"{run.id}x", NotFound, f"there is no run {run.id}x")
    assert run.id in error.remedy


async def test_a_run_that_is_open(fast: Runyard, client: Client) -> None:
    run = await fast.start(file(task("long", "sleep 600")))
    await status(run, "long", "running")
    error = await refused(fast, client, run.id, Conflict, "has not ended")
    assert "run retry" in error.remedy
    assert "run cancel" in error.remedy
    await run.cancel()
    await run.result()


async def test_a_run_whose_id_is_in_use_again(fast: Runyard, client: Client) -> None:
    """The result in the store is that of the execution before; the plan is not."""
    run = await failed(fast)
    asked = {"file": file(task("long", "sleep 600")), "executor": "memory"}
    handle = await client.start_workflow(WORKFLOW, asked, id=run.id, task_queue=RUNS_QUEUE)
    await status(fast.run(run.id), "long", "running")
    await refused(fast, client, run.id, Conflict, "has not ended")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()


async def test_a_run_that_was_removed(fast: Runyard, client: Client, store: ObjectStore) -> None:
    """Temporal still knows it; the store does not, as after its retention."""
    run = await failed(fast)
    await delete(store, paths.run(run.id))
    error = await refused(fast, client, run.id, NotFound, "the store has no plan of run .* it was removed since")
    assert "run start" in error.remedy


async def test_a_run_whose_file_was_wrong(fast: Runyard, client: Client) -> None:
    asked = {"file": {"runs": [{"name": "b", "tasks": [{"nonsense": 1}]}]}}
    handle = await client.start_workflow(
        WORKFLOW, asked, id=f"wrong-{uuid.uuid4().hex[:12]}", task_queue=RUNS_QUEUE
    )
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    await refused(fast, client, handle.id, NotFound, "it ended before it had one")


async def test_a_run_whose_logs_expired_runs_all_again_and_says_why(fast: Runyard, store: ObjectStore) -> None:
    run = await failed(fast)
    await delete(store, "logs/")
    assert await restarted(fast, run) == {
        "make": "its logs are gone",
        "test": "it failed",
        "publish": "it was skipped",
    }


async def test_archives_that_were_removed_by_hand(fast: Runyard, store: ObjectStore) -> None:
    run = await failed(fast)
    made = (await read_plan(store, run.id)).tasks[0].id
    (archive,) = [info.key async for info in store.list(paths.archives(made)) if "tar" in info.key]
    await store.delete(archive)
    assert (await restarted(fast, run))["make"] == f"its archive {archive.rpartition('/')[2]} is gone"


async def test_an_archive_that_was_cut_short(fast: Runyard, store: ObjectStore) -> None:
    run = await failed(fast)
    made = (await read_plan(store, run.id)).tasks[0].id
    (archive,) = [info.key async for info in store.list(paths.archives(made)) if "tar" in info.key]
    await store.put(archive, b"half")
    assert "another size" in (await restarted(fast, run))["make"]


async def test_a_seal_that_cannot_be_read(fast: Runyard, store: ObjectStore) -> None:
    run = await failed(fast)
    made = (await read_plan(store, run.id)).tasks[0].id
    await store.put(paths.seal(made, 1), b"{}")
    assert (await restarted(fast, run))["make"] == "its seal cannot be read"


async def test_data_that_a_cleanup_has_given_up(fast: Runyard, store: ObjectStore) -> None:
    run = await failed(fast)
    made = (await read_plan(store, run.id)).tasks[0].id
    await store.put(paths.tombstone(paths.archive_item(made)), b"")
    assert (await restarted(fast, run))["make"] == "its data is being removed by the cleanup"


async def test_a_renamed_task(fast: Runyard) -> None:
    run = await failed(fast)
    renamed = (task("build", "output V=1", SAVE), task("test", "true", depends=["build"]))
    assert await restarted(fast, run, file=file(*renamed)) == {
        "build": "the earlier run has no task of this name",
        "test": "it failed",
    }


async def test_a_changed_file_runs_what_it_changes(fast: Runyard) -> None:
    run = await fast.start(file(task("a", "true"), task("b", "true"), task("c", "true", depends=["b"])))
    await run.result()
    changed = file(task("a", "true"), task("b", "echo new"), task("c", "true", depends=["b"]))
    assert await restarted(fast, run, file=changed) == {
        "a": run.id,
        "b": "its steps changed",
        "c": "b before it is not kept",
    }


async def test_a_changed_file_that_is_not_valid(fast: Runyard) -> None:
    run = await failed(fast)
    with pytest.raises(InvalidRunFile):
        await fast.restart(run.id, file={"runs": [{"name": "build", "tasks": [{"nonsense": 1}]}]})
    with pytest.raises(InvalidRequest, match="no run `build`"):
        await fast.restart(run.id, file=file(*TASKS, name="other"))


@pytest.mark.parametrize("header", [{"version": 99, "made_by": "7.0"}, {"version": "x"}, {}])
async def test_a_run_of_another_version(
    fast: Runyard, client: Client, store: ObjectStore, header: dict[str, object]
) -> None:
    run = await failed(fast)
    first, _, rest = (await read(store, paths.plan(run.id))).partition(b"\n")
    facts = {name: value for name, value in json.loads(first).items() if name not in ("version", "made_by")}
    await store.put(paths.plan(run.id), json.dumps({**facts, **header}).encode() + b"\n" + rest)
    by = "Runyard 7.0" if "made_by" in header else "another version of Runyard"
    error = await refused(fast, client, run.id, Conflict, f"was made by {by}, and cannot be restarted by")
    assert "the version that made it" in error.remedy


async def test_a_run_that_kept_no_request(fast: Runyard, client: Client, store: ObjectStore) -> None:
    run = await failed(fast)
    await store.delete(paths.request(run.id))
    await refused(fast, client, run.id, Conflict, "there is no request beside its plan")


async def test_a_run_that_was_cancelled(fast: Runyard) -> None:
    run = await fast.start(
        file(task("a", "true"), task("b", "sleep 600", depends=["a"]), task("c", depends=["b"]))
    )
    await status(run, "b", "running")
    await run.cancel()
    await run.result()
    changed = file(task("a", "true"), task("b", "true", depends=["a"]), task("c", depends=["b"]))
    assert await restarted(fast, run, file=changed) == {
        "a": run.id,
        "b": "it was cancelled",
        "c": "it was cancelled",
    }


async def test_a_run_that_was_terminated_has_no_result_and_its_seals_tell(fast: Runyard, client: Client) -> None:
    run = await fast.start(file(task("a", "true"), task("b", "sleep 600", depends=["a"])))
    await status(run, "b", "running")
    await client.get_workflow_handle(run.id).terminate()
    changed = file(task("a", "true"), task("b", "true", depends=["a"]))
    found = await restarted(fast, run, file=changed)
    assert found["a"] == run.id
    # the server may have told the worker in time to end the pod, and to seal it
    assert found["b"] in ("it did not end", "it was cancelled")


async def test_a_run_that_temporal_has_forgotten(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    execution = WorkflowExecution(workflow_id=run.id)
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=execution)
    )
    while not await _is_forgotten(client, run.id):
        await asyncio.sleep(0.1)
    assert (await restarted(fast, run))["make"] == run.id
    again = await fast.restart(run.id)
    await again.result()
    assert [line.text async for line in again.logs("make")] == []
    assert (await run.describe()).result == "failed"


async def _is_forgotten(client: Client, run_id: str) -> bool:
    try:
        await client.get_workflow_handle(run_id).describe()
    except RPCError as error:
        return error.status is RPCStatusCode.NOT_FOUND
    return False


async def test_a_task_that_is_not_there(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    error = await refused(fast, client, run.id, InvalidRequest, "no task `tset`", tasks=["tset"])
    assert error.remedy == "did you mean `test`?"


async def test_nonsense(fast: Runyard, client: Client) -> None:
    run = await failed(fast)
    with pytest.raises(InvalidRequest, match="not both"):
        await fast.restart(run.id, failed=True, from_start=True)
    with pytest.raises(InvalidRequest, match="every task"):
        await fast.restart(run.id, from_start=True, tasks=["test"])
    with pytest.raises(Conflict, match="exists already"):
        await fast.restart(run.id, run_id=run.id)
    handle = await client.start_workflow(WORKFLOW, {"restart": {"run": run.id}}, id=run.id, task_queue=RUNS_QUEUE)
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert "restart of itself" in str(caught.value.cause)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "the request needs the field `file`"),
        ({"restart": None}, "the request needs the field `file`"),
        ({"restart": {}}, "the request needs the field `restart.run`"),
        ({"restart": {"run": ""}}, "the request's `restart.run`: String should have at least 1 character"),
        ({"restart": {"run": "x" * 5000}}, "1 to 1024 bytes"),
        ({"restart": {"run": "../x\0"}}, "there is no run"),
        ({"restart": {"run": "x", "mode": "sideways"}}, "the request's `restart.mode`: Input should be 'failed'"),
        ({"restart": {"run": "x", "task": ["a"]}}, "the request has no field `restart.task`"),
        ({"restart": "x"}, "the request's `restart`"),
    ],
)
async def test_requests_that_make_no_sense(
    yard: Yard, client: Client, request_: dict[str, object], words: str
) -> None:
    assert words in (await as_json(client, request_)).message


@pytest.mark.parametrize("field", ["source", "static_environment", "message"])
async def test_what_is_fixed_for_the_commit_is_refused(fast: Runyard, client: Client, field: str) -> None:
    run = await failed(fast)
    value = {"source": {"commit": "c"}, "static_environment": {"A": "1"}, "message": "m"}[field]
    said = await as_json(client, {"restart": {"run": run.id}, field: value})
    assert f"`{field}` is fixed for the commit" in said.message
