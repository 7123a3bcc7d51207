"""What `doctor` looks at. A check never raises: what it finds is its answer."""

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runyard.cli.ours import find_stranger
from runyard.cli.text import seconds
from runyard.errors import RunyardError
from runyard.spec.group import LINES_QUEUE
from runyard.spec.run import RUNS_QUEUE, executor_queue

if TYPE_CHECKING:
    from temporalio.client import Client

    from runyard.settings import Settings

OLDEST_SERVER = (1, 29)
"""What `tests/badinput/test_badinput_oldserver.py` tries; docs/operations.md says what is missing there."""

_SHORT = timedelta(days=7)


@dataclass(frozen=True)
class Check:
    """``remedy`` says what to do about one that isn't ok."""

    name: str
    state: Literal["ok", "warning", "wrong"]
    message: str
    remedy: str = ""


# this machine


def machine(settings: "Settings") -> Iterator[Check]:
    if stranger := find_stranger():
        name, place = stranger
        yield Check(
            "packages",
            "wrong",
            f"`{name}` is not Runyard's: {place}",
            "Install Runyard in an environment of its own: pipx or uv tool.",
        )
    else:
        yield Check("packages", "ok", "workflows, activities and workers are Runyard's")
    for program, need, what in (
        ("sh", "wrong", "tasks are shell scripts"),
        ("git", "wrong", "`clone` needs it"),
        ("zstd", "warning", "without it archives are gzip: larger and slower"),
    ):
        yield _program(program, need, what)
    if settings.secrets_file is not None:
        yield _secrets_file(settings.secrets_file)
    yield from _traces()


def _program(name: str, need: str, what: str) -> Check:
    if found := shutil.which(name):
        return Check(name, "ok", found)
    return Check(name, "wrong" if need == "wrong" else "warning", f"not on the PATH: {what}", f"Install {name}.")


def _secrets_file(file: Path) -> Check:
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        return Check("secrets", "wrong", f"{file}: {error.strerror}", "Create it, or unset RUNYARD_SECRETS_FILE.")
    if not os.access(file, os.R_OK):
        return Check("secrets", "wrong", f"{file} cannot be read", f"chmod u+r {file}")
    if mode & 0o077:
        return Check("secrets", "wrong", f"others can read {file} (mode {mode:03o})", f"chmod 600 {file}")
    return Check("secrets", "ok", str(file))


def _traces() -> Iterator[Check]:
    """Only where OpenTelemetry's variables ask for them."""
    from workers.traces import asked_for, open_traces

    if not asked_for():
        return
    try:
        open_traces().close()
    except RunyardError as error:
        yield Check("traces", "warning", f"none are sent: {error.message}", error.remedy)
        return
    yield Check("traces", "ok", "sent by OTLP, as the OTEL_ variables say")


# Temporal


async def temporal(
    settings: "Settings", *, address: str | None, namespace: str | None, fix: bool
) -> AsyncIterator[Check]:
    from runyard.temporal import connect

    try:
        client = await connect(address=address, namespace=namespace)
    except RunyardError as error:
        yield Check("server", "wrong", error.message, error.remedy)
        return
    yield await _server(client)
    spaces = await _namespace(client)
    yield spaces
    if spaces.state == "wrong":
        return
    yield await _search_attributes(client, fix=fix)
    yield await _cleanup(client, settings, fix=fix)
    for queue in dict.fromkeys((RUNS_QUEUE, LINES_QUEUE, executor_queue(settings.executor))):
        yield await _worker(client, queue)


async def _server(client: "Client") -> Check:
    from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
    from temporalio.service import RPCError

    address = client.service_client.config.target_host
    try:
        info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    except RPCError as error:
        return Check("server", "wrong", f"{address}: {error.message[:200]}", "Is TEMPORAL_ADDRESS right?")
    return judge_version(address, info.server_version)


def judge_version(address: str, version: str) -> Check:
    """A server that does not tell its version, such as a cloud's, is none that is old."""
    message = f"{address}, version {version or 'unknown'}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST_SERVER:
        return Check("server", "ok", message)
    oldest = ".".join(map(str, OLDEST_SERVER))
    remedy = "It may do all the same; if a run stands still there, upgrade the server."
    return Check("server", "warning", f"{message}: older than {oldest}, the oldest that was tried", remedy)


async def _namespace(client: "Client") -> Check:
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.service import RPCError, RPCStatusCode

    name = client.namespace
    try:
        found = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=name))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            remedy = f"Set TEMPORAL_NAMESPACE, or: temporal operator namespace create -n {name} --retention 30d"
            return Check("namespace", "wrong", f"{name} does not exist", remedy)
        return Check("namespace", "wrong", f"{name}: {error.message[:200]}", "Is the account allowed to see it?")
    kept = found.config.workflow_execution_retention_ttl.ToTimedelta()
    message = f"{name}, closed runs stay {seconds(kept.total_seconds())}"
    if kept < _SHORT:
        remedy = f"temporal operator namespace update -n {name} --retention 30d (the store remembers them anyway)"
        return Check("namespace", "warning", message, remedy)
    return Check("namespace", "ok", message)


async def _search_attributes(client: "Client", *, fix: bool) -> Check:
    from temporalio.api.enums.v1 import IndexedValueType
    from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
    from temporalio.service import RPCError

    from runyard.temporal import SEARCH_ATTRIBUTES

    name = "search attributes"
    try:
        if fix:
            from workers.serve import require_search_attributes

            await require_search_attributes(client)
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        return Check(name, "wrong", error.message[:200], "An account that may see them can run `runyard doctor`.")
    except RunyardError as error:
        return Check(name, "wrong", error.message, error.remedy)
    kinds = {
        each: IndexedValueType.Name(kind).removeprefix("INDEXED_VALUE_TYPE_").replace("_", "").lower()
        for each, kind in known.custom_attributes.items()
    }
    missing = [each for each in SEARCH_ATTRIBUTES if each not in kinds]
    wrong = [f"{each} is {kinds[each]}, not {kind}" for each, kind in SEARCH_ATTRIBUTES.items()
             if each in kinds and kinds[each] != kind.lower()]  # fmt: skip
    if wrong:
        return Check(name, "wrong", "; ".join(wrong), "Remove them there, then `runyard doctor --fix`.")
    if missing:
        return Check(name, "wrong", f"missing: {', '.join(missing)}", "Register them with `runyard doctor --fix`.")
    return Check(name, "ok", f"{len(SEARCH_ATTRIBUTES)} of {len(SEARCH_ATTRIBUTES)} registered")


async def _cleanup(client: "Client", settings: "Settings", *, fix: bool) -> Check:
    from temporalio.service import RPCError

    from runyard.client.cleanup import ensure_schedule, next_cleanup, other_schedules
    from runyard.errors import NotFound
    from runyard.spec.cleanup import CLEANUP_ID

    try:
        if fix:
            await ensure_schedule(client, every_s=settings.cleanup_every_s)
        due = await next_cleanup(client)
        others = await other_schedules(client)
    except NotFound as error:
        return Check("cleanup", "warning", f"{error.message}: nothing is ever removed", error.remedy)
    except RunyardError as error:
        return Check("cleanup", "warning", error.message, error.remedy)
    except RPCError as error:
        return Check("cleanup", "warning", error.message[:200], "Is the account allowed to see schedules?")
    if others:
        remedy = f"Once is enough: temporal schedule delete --schedule-id {others[0]}"
        return Check("cleanup", "warning", f"{', '.join(others)} starts cleanups too", remedy)
    if due is None:
        return Check(
            "cleanup",
            "warning",
            "its schedule is paused",
            f"temporal schedule toggle --unpause --schedule-id {CLEANUP_ID}",
        )
    return Check("cleanup", "ok", f"next at {due:%Y-%m-%d %H:%M} UTC")


async def _worker(client: "Client", queue: str) -> Check:
    from temporalio.service import RPCError

    from runyard.client.served import count_pollers

    name = "worker"
    try:
        pollers = await count_pollers(client, queue)
    except RPCError as error:
        return Check(name, "wrong", f"{queue}: {error.message[:200]}", "Is the account allowed to see it?")
    if not pollers:
        runs = queue in (RUNS_QUEUE, LINES_QUEUE)
        option = "--runs" if runs else f"--executor {queue.removeprefix(RUNS_QUEUE + '-')}"
        return Check(name, "wrong", f"none on the queue {queue}", f"Start one: `runyard worker {option}`.")
    return Check(name, "ok", f"{pollers} on the queue {queue}")


# executor


async def executor(settings: "Settings") -> Check:
    from runyard.executors.open import open_executor

    name = settings.executor
    try:
        opened = open_executor(name, settings)
        try:
            pods = [pod async for pod in opened.list()]
        finally:
            await opened.close()
    except RunyardError as error:
        return Check("executor", "wrong", f"{name}: {error.message}", error.remedy)
    running = sum(pod.running for pod in pods)
    return Check("executor", "ok", f"{name}: {running} running, {len(pods) - running} ended and not yet removed")
