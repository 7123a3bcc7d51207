"""Servers that are not there, are of another make, or lack what Runyard needs; two of ours in one place."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from bad_scene import at_work, end, everything_below, file, play, task, until
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import CancelledError
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from yard import temporal_program

from runyard.client import Runyard
from runyard.client.cleanup import clean
from runyard.errors import ConfigError, RunyardError, ServerUnavailable
from runyard.settings import Settings
from runyard.temporal import connect, data_converter
from workers.serve import require_search_attributes, serve


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state", store_folder=tmp_path / "store")


@pytest_asyncio.fixture
async def bare(client: Client) -> Client:
    """A namespace that has never heard of Runyard, on the server of all tests."""
    name = f"bare-{uuid.uuid4().hex[:8]}"
    request = RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
    await client.workflow_service.register_namespace(request)
    address = client.service_client.config.target_host
    for _ in range(300):  # the server's caches learn of it after a while
        try:
            found = await connect(address=address, namespace=name)
            await found.count_workflows()
            return found
        except (RPCError, RunyardError):
            await asyncio.sleep(0.1)
    raise AssertionError(f"the namespace {name} does not come")


async def test_a_namespace_without_our_search_attributes(bare: Client, settings: Settings) -> None:
    """A start says what is missing; a worker adds it, and then the start goes through."""
    async with Runyard.over(bare, settings) as yard:
        with pytest.raises(RunyardError) as caught:
            await yard.start(file(task("t", "echo")), executor="local")
        assert "search attribute" in str(caught.value).lower()
        assert "runyard doctor --fix" in f"{caught.value} {caught.value.remedy}"
    await require_search_attributes(bare)
    async with Runyard.over(bare, settings) as yard, at_work(bare, settings):
        for _ in range(300):
            try:
                run = await yard.start(file(task("t", "echo")), executor="local")
                break
            except RunyardError:  # the attributes reach the server's caches later
                await asyncio.sleep(0.1)
        assert (await asyncio.wait_for(run.result(), 60)).result == "success"


async def test_a_search_attribute_of_another_type_is_named(bare: Client, settings: Settings) -> None:
    wrong = {"RunyardTasks": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD}
    request = AddSearchAttributesRequest(namespace=bare.namespace, search_attributes=wrong)
    await bare.operator_service.add_search_attributes(request)
    with pytest.raises(ConfigError, match="RunyardTasks is Keyword, not Int"):
        await asyncio.wait_for(serve(bare, settings), 30)


async def test_a_server_that_goes_while_somebody_waits_for_a_cleanup(settings: Settings) -> None:
    program = temporal_program()
    server = await WorkflowEnvironment.start_local(
        data_converter=data_converter(), dev_server_existing_path=program
    )
    async with Runyard.over(server.client, settings) as yard:
        started = await clean(yard)  # nobody serves it: it does not end
        await server.shutdown()
        with pytest.raises(ServerUnavailable, match="does not answer"):
            await started.result()


async def test_a_worker_of_a_namespace_that_is_not_there(client: Client, settings: Settings) -> None:
    nowhere = await connect(address=client.service_client.config.target_host, namespace="nowhere")
    with pytest.raises(RunyardError, match="nowhere"):
        await asyncio.wait_for(serve(nowhere, settings), 30)


async def test_something_else_at_the_address(settings: Settings) -> None:
    """A web server, say: it answers, but not as Temporal does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match=address):
            async with asyncio.timeout(60), Runyard.connect(settings, address=address):
                pass


@pytest_asyncio.fixture(scope="module")
async def plain() -> AsyncIterator[Client]:
    """A server with none of our settings: as near to an older or a foreign one as a test gets cheaply."""
    async with await WorkflowEnvironment.start_local(
        data_converter=data_converter(), dev_server_existing_path=temporal_program()
    ) as environment:
        await require_search_attributes(environment.client)
        yield environment.client


async def test_a_server_without_our_settings_runs(plain: Client, settings: Settings) -> None:
    async with at_work(plain, settings) as yard:
        played = await play(yard, task("a", "echo one"), task("b", "exit 3", depends=["a"]), task("c", "echo"))
    assert played.view.counts == {"success": 2, "failed": 1}
    assert await played.log("a") == b"one\n"


@pytest.mark.promise(7)
async def test_a_server_without_our_settings_cancels(plain: Client, settings: Settings, tmp_path: Path) -> None:
    """There a cancel comes with the next heartbeat: later, but it comes."""
    async with at_work(plain, settings) as yard:
        handle = await yard.start(
            file(task("long", "echo begun; sleep 600"), task("next", "echo", depends=["long"]))
        )
        logs = tmp_path / "store" / "data" / "logs"
        await until(lambda: b"begun" in everything_below(logs), "the step to begin")
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await asyncio.wait_for(handle.result(), 40)
        assert isinstance(caught.value.cause, CancelledError)
        played = await end(yard, handle)
        assert await played.log("long") == b"begun\n"
        assert [pod async for pod in yard.executor.list()] == []
