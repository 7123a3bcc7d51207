"""The client against a real server and worker (memory executor), with and without each of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import (
    Client,
    FetchWorkflowHistoryEventsInput,
    Interceptor,
    OutboundInterceptor,
    WorkflowHistoryEventAsyncIterator,
)
from temporalio.service import RPCError, RPCStatusCode

from runyard.client import Run, Runyard
from runyard.errors import (
    Conflict,
    InvalidRequest,
    InvalidRunFile,
    NotFound,
    ServerUnavailable,
)
from runyard.settings import Settings
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunView, TaskView
from runyard.store.base import ObjectStore


def task(name: str, *steps: str, **fields: object) -> dict[str, object]:
    runtime = {"containers": [{"image": "busybox"}]}
    return {"name": name, "runtime": runtime, "steps": [{"run": step} for step in steps], **fields}


def file(*tasks: dict[str, object], name: str = "build", **fields: object) -> dict[str, object]:
    return {"runs": [{"name": name, "tasks": list(tasks), **fields}]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path, store_folder=tmp_path / "store", executor="memory")


@pytest.fixture
def idle(client: Client, store: ObjectStore, settings: Settings) -> Runyard:
    """A client where no worker of this test serves."""
    return Runyard(client, store, settings=settings, ui="http://ui.example:8233/")


@pytest_asyncio.fixture
async def runs(idle: Runyard, yard: object) -> AsyncIterator[Runyard]:
    """A client and a worker."""
    yield idle


async def status(run: Run, name: str, *wanted: str) -> TaskView:
    async for view in run.watch(0.05):
        found = next((each for each in view.tasks if each.name == name), None)
        if found and found.status in wanted:
            return found
    raise AssertionError(f"{name} never was {wanted}")


# starting


async def test_start_watch_result(runs: Runyard) -> None:
    run = await runs.start(file(task("a", "echo one"), task("b", "echo two", depends=["a"])), project="p'q\\r")
    assert run.id.startswith("build-20")
    looks = [view async for view in run.watch(0.05)]
    assert (looks[-1].phase, looks[-1].result) == ("finished", "success")
    assert [task.depends for task in looks[-1].tasks] == [[], ["a"]]
    assert all(one != two for one, two in pairwise(looks)), "only changes"
    result = await run.result()
    assert (result.result, result.counts) == ("success", {"success": 2})
    assert run.ui == f"http://ui.example:8233/namespaces/default/workflows/{run.id}"
    assert (await run.describe()).ui == run.ui


class BreaksOff(Interceptor):
    """The first wait for a run's end is broken off, as by a server that restarts or by a proxy."""

    def __init__(self) -> None:
        self.broken_off = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        waits = self

        class Outbound(OutboundInterceptor):
            def fetch_workflow_history_events(
                self,
                input: FetchWorkflowHistoryEventsInput,  # noqa: A002 - the SDK's name
            ) -> WorkflowHistoryEventAsyncIterator:
                if input.wait_new_event and not waits.broken_off:
                    waits.broken_off += 1
                    raise RPCError("the server restarts", RPCStatusCode.UNAVAILABLE, b"")
                return super().fetch_workflow_history_events(input)

        return Outbound(next)


async def test_a_watch_whose_wait_is_broken_off_goes_on_to_the_end(
    runs: Runyard, client: Client, store: ObjectStore, settings: Settings
) -> None:
    waits = BreaksOff()
    cut = Client(client.service_client, data_converter=client.data_converter, interceptors=[waits])
    watching = Runyard(cut, store, settings=settings)
    run = await runs.start(file(task("a", "sleep 1")))
    async with asyncio.timeout(30):
        looks = [view async for view in watching.run(run.id).watch(0.05)]
    assert waits.broken_off == 1
    assert (looks[-1].phase, looks[-1].result) == ("finished", "success")


async def test_a_failed_run_is_a_result(runs: Runyard) -> None:
    run = await runs.start(file(task("a", "exit 3")))
    result = await run.result()
    assert (result.result, result.cause) == ("failed", "1 of 1 task failed: a")
    view = await run.describe()
    assert view.tasks[0].exit_code == 3


async def test_paths_and_texts(runs: Runyard, tmp_path: Path) -> None:
    text = "runs: [{name: b, tasks: [{name: t, runtime: {containers: [{image: i}]}, steps: [{run: echo}]}]}]\n"
    path = tmp_path / "ci.yml"
    path.write_text(text)
    started = [await runs.start(path), await runs.start(str(path)), await runs.start(text)]
    assert [(await run.result()).result for run in started] == ["success"] * 3


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("nowhere.yml", NotFound),
        ("nowhere.yml\0", InvalidRequest),
        ("runs: [\n", InvalidRunFile),
        ("", InvalidRequest),
        ({"runs": [{"name": "b", "tasks": [{"name": "t", "nonsense": 1}]}]}, InvalidRunFile),
        ({"runs": []}, InvalidRunFile),
    ],
)
async def test_what_is_wrong_with_a_file_is_said_before_the_start(
    idle: Runyard, given: str | dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await idle.start(given)  # type: ignore[arg-type]
    assert not await idle.list(project="no such")


async def test_bytes_that_are_no_text(idle: Runyard, tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_bytes(b"runs:\n\xff")
    with pytest.raises(InvalidRunFile) as caught:
        await idle.start(tmp_path / "b.yml")
    assert caught.value.problems[0].line == 2


async def test_a_worker_that_judges_otherwise(runs: Runyard, client: Client) -> None:
    """A file that somebody else started: the worker's problems come back whole."""
    handle = await client.start_workflow(
        WORKFLOW, {"file": {"runs": [{"name": "b", "tasks": [{"name": "t", "nonsense": 1}]}]}}, id="invalid-1",
        task_queue=RUNS_QUEUE,
    )  # fmt: skip
    run = runs.run(handle.id)
    with pytest.raises(InvalidRunFile) as caught:
        await run.result()
    assert any("nonsense" in str(problem) for problem in caught.value.problems)
    view = await run.describe()
    assert (view.phase, view.result) == ("finished", "failed")
    assert "nonsense" in view.cause
    looks = [each async for each in run.watch()]
    assert looks[-1].cause == view.cause


async def test_idempotent_start(runs: Runyard) -> None:
    first = await runs.start(file(task("a", "echo")), idempotency_key="commit 1")
    await first.result()
    again = await runs.start(file(task("a", "echo")), idempotency_key="commit 1")
    other = await runs.start(file(task("a", "echo")), idempotency_key="commit 2")
    assert first.id == again.id != other.id
    with pytest.raises(Conflict, match="exists already"):
        await runs.start(file(task("a", "echo")), run_id=first.id)
    with pytest.raises(InvalidRequest):
        await runs.start(file(task("a", "echo")), run_id="x", idempotency_key="y")


@pytest.mark.parametrize("run_id", ["", "a/b", "a b", "..", "a\nb", "x" * 201, "a\0"])
async def test_ids_that_cannot_be(idle: Runyard, run_id: str) -> None:
    with pytest.raises(InvalidRequest):
        idle.run(run_id)


# finding


async def test_list(runs: Runyard, client: Client) -> None:
    good = await runs.start(file(task("a", "echo"), name="good"), project="it's", group="/g/web")
    bad = await runs.start(file(*(task(name, "exit 1") for name in "abcdefg"), name="bad"), project="it's")
    await asyncio.gather(good.result(), bad.result())

    async def ids(**filters: object) -> list[str]:
        return [view.id for view in await runs.list(project="it's", **filters)]  # type: ignore[arg-type]

    async with asyncio.timeout(60):  # visibility comes a moment later
        while sorted(await ids(phase="closed")) != sorted([good.id, bad.id]):
            await asyncio.sleep(0.05)
    assert await ids(phase="failed") == [bad.id]
    assert await ids(phase="success") == [good.id]
    assert await ids(phase="open") == []
    assert await ids(group="/g/web") == [good.id]
    assert len(await ids(limit=1)) == 1
    view = next(view for view in await runs.list(project="it's") if view.id == bad.id)
    assert (view.name, view.result, view.executor) == ("bad", "failed", "memory")
    words = view.cause.removeprefix("failed: ").removesuffix(" and 2 more")
    assert len(set("abcdefg") & set(words.split(", "))) == 5, view.cause


async def test_runs_that_temporal_has_forgotten(runs: Runyard, store: ObjectStore, settings: Settings) -> None:
    run = await runs.start(file(task("a", "echo kept"), name="old"), project="museum")
    await run.result()
    offline = Runyard(None, store, settings=settings, away=ServerUnavailable("away"))
    assert [view.id for view in await offline.list(project="museum")] == [run.id]
    assert not await offline.list(project="other")
    remembered = offline.run(run.id)
    assert (await remembered.describe()).tasks[0].status == "success"
    assert (await remembered.result()).result == "success"
    assert [view.result async for view in remembered.watch()] == ["success"]
    assert [str(line) async for line in remembered.logs("a")] == ["kept"]
    for act in (remembered.cancel(), remembered.approve("a", by="x"), offline.run("nobody").describe()):
        with pytest.raises(ServerUnavailable, match="away"):
            await act


async def test_unknown_run_and_task(runs: Runyard) -> None:
    run = await runs.start(file(task("lint", "echo"), task("test", "echo")))
    await run.result()
    with pytest.raises(NotFound) as caught:
        await runs.run(run.id[:-1]).describe()
    assert run.id in caught.value.remedy
    unknown = runs.run("nobody-knows")
    for act in (unknown.result(), unknown.cancel(), unknown.approve("a", by="me"), anext(unknown.watch())):
        with pytest.raises(NotFound, match="no run nobody-knows"):
            await act
    with pytest.raises(NotFound, match="no run nobody-knows"):
        [line async for line in unknown.logs("a")]
    with pytest.raises(NotFound) as missing:
        [line async for line in run.logs("tset")]
    assert "'test'" in missing.value.remedy


# deciding


async def test_approve_reject_cancel_retry(runs: Runyard) -> None:
    gate = {"approvers": 2}
    run = await runs.start(
        file(task("go", "echo", approval=gate), task("stop", "echo", approval=True), task("held", "exit 1"),
             on_failure="hold")
    )  # fmt: skip
    await status(run, "go", "approval")
    await status(run, "held", "held")
    assert (await run.approve("go", by="ann")).approvals == ["ann"]
    with pytest.raises(Conflict, match="already"):
        await run.approve("go", by="ann")
    with pytest.raises(NotFound) as caught:
        await run.approve("og", by="ann")
    assert "'go'" in caught.value.remedy
    with pytest.raises(Conflict, match="not held"):
        await run.retry_task("go")
    await run.approve("go", by="bob")
    await run.reject("stop", by="ann", reason="friday")
    await run.retry_task("held", by="ann")
    await status(run, "held", "held")
    await run.cancel_task("held", by="ann")
    result = await run.result()
    assert result.result in ("failed", "stopped")
    view = {each.name: each for each in (await run.describe()).tasks}
    assert (view["go"].status, view["held"].attempt) == ("success", 2)
    assert "friday" in view["stop"].message
    with pytest.raises(Conflict, match="ended already"):
        await run.approve("go", by="zoe")
    with pytest.raises(Conflict, match="ended already"):
        await run.cancel()


async def test_cancel(runs: Runyard) -> None:
    run = await runs.start(file(task("a", "sleep 1000")))
    await status(run, "a", "running")
    await run.cancel()
    result = await run.result()
    assert result.result == "stopped"
    assert (await run.describe()).result == "stopped"


# with something missing


async def test_no_worker(
    client: Client, store: ObjectStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be started, seen, listed and cancelled; what needs a worker says so."""
    monkeypatch.setattr("runyard.client.run.ANSWER_S", 0.5)
    handle = await client.start_workflow(WORKFLOW, {"file": ""}, id="nobody-works", task_queue="nobody-serves")
    run = Runyard(client, store, settings=settings).run(handle.id)
    view = await run.describe()
    assert view.phase == "running"
    assert "no worker answers" in view.cause
    with pytest.raises(ServerUnavailable, match="no worker answers") as caught:
        await run.approve("a", by="me")
    assert "runyard worker" in caught.value.remedy
    await handle.terminate()
    assert (await run.result()).result == "stopped"
    assert (await run.describe()).cause == "terminated from outside"


async def test_no_server(settings: Settings) -> None:
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1"):
        async with Runyard.connect(settings, address="127.0.0.1:1"):
            pass
    async with Runyard.connect(settings, address="127.0.0.1:1", offline=True) as yard:
        assert not yard.online
        assert await yard.list() == ()


async def test_wrong_namespace(client: Client, settings: Settings) -> None:
    address = client.service_client.config.target_host
    async with Runyard.connect(settings, address=address, namespace="nowhere") as yard:
        for act in (
            yard.list(),
            yard.start(file(task("a", "echo"))),
            yard.run("r").describe(),
            yard.run("r").result(),
        ):
            with pytest.raises(ServerUnavailable, match="no namespace 'nowhere'"):
                await act


# logs


async def test_logs_of_steps_and_attempts(runs: Runyard) -> None:
    run = await runs.start(
        file(task("a", "echo one\necho two", "echo three\nexit 1", retry={"limit": 1, "backoff": "10ms"}))
    )
    await run.result()
    lines = [line async for line in run.logs("a")]
    assert [(line.text, line.step, line.attempt) for line in lines] == [
        ("one", 0, 2),
        ("two", 0, 2),
        ("three", 1, 2),
    ]
    assert [str(line) async for line in run.logs("a", lines=2)] == ["two", "three"]
    assert [str(line) async for line in run.logs("a", lines=0)] == []
    assert [str(line) async for line in run.logs("a", step=0, attempt=1)] == ["one", "two"]
    assert [line.attempt async for line in run.logs("a", step=1, follow=True)] == [2]
    assert [str(line) async for line in run.logs("a", follow=True, lines=1)] == ["three"]
    assert [line.step async for line in run.logs("a", step="setup")]
    with pytest.raises(NotFound):
        [line async for line in run.logs("a", step=9)]
    for wrong in ({"attempt": 0}, {"lines": -1}, {"step": "two"}):
        with pytest.raises(InvalidRequest):
            [line async for line in run.logs("a", **wrong)]  # type: ignore[arg-type]


async def test_follow_from_before_the_plan_over_attempts(runs: Runyard) -> None:
    run = await runs.start(
        file(task("wait", "sleep 0.3"),
             task("a", "echo hello\nexit 1", depends=["wait"], retry={"limit": 2, "backoff": "100ms"}))
    )  # fmt: skip
    lines = [(line.text, line.attempt) async for line in run.logs("a", follow=True)]
    assert lines == [("hello", 1), ("hello", 2), ("hello", 3)]


async def test_follow_ends_for_tasks_that_never_begin(runs: Runyard) -> None:
    run = await runs.start(file(task("a", "exit 1"), task("b", "echo", depends=["a"])))
    assert [line async for line in run.logs("b", follow=True)] == []
    held = await runs.start(file(task("a", "echo", approval=True)))
    following = asyncio.create_task(_collect(held, "a"))
    await status(held, "a", "approval")
    await held.cancel()
    assert await asyncio.wait_for(following, 30) == []


async def _collect(run: Run, name: str) -> list[str]:
    return [str(line) async for line in run.logs(name, follow=True)]


async def test_a_follower_that_stops_early_leaves_nothing(runs: Runyard) -> None:
    run = await runs.start(file(task("a", "echo one\nsleep 1000")))
    lines = run.logs("a", follow=True)
    async with contextlib.aclosing(lines) as opened:  # type: ignore[type-var]
        async for line in opened:
            assert str(line) == "one"
            break
    assert not [each for each in asyncio.all_tasks() if "_pump" in repr(each)]
    await run.cancel()
    await run.result()


def test_views_are_plain_json() -> None:
    assert RunView.model_validate_json(RunView(id="r").model_dump_json()) == RunView(id="r")
