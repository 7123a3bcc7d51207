"""Errors that come back from the server or a worker, as ours: the one edge between Temporal's and the client's."""

from collections.abc import Iterable
from difflib import get_close_matches

from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from runyard.errors import (
    Forbidden,
    InvalidRequest,
    InvalidRunFile,
    NotFound,
    Problem,
    RemoteError,
    RunyardError,
    ServerUnavailable,
    tree,
)

_AWAY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
_REFUSED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED)


def from_rpc(error: RPCError, *, what: str, address: str, namespace: str) -> RunyardError:
    """``what`` is what was asked for, e.g. `run build-7`: the name in the sentence when it is not there."""
    if error.status is RPCStatusCode.NOT_FOUND and "namespace" in error.message.lower():
        return ServerUnavailable(
            f"the Temporal server at {address} has no namespace {namespace!r}",
            remedy="Set TEMPORAL_NAMESPACE to one that it has, or create it there.",
        )
    if error.status is RPCStatusCode.NOT_FOUND:
        return NotFound(f"{what} does not exist")
    if error.status in _AWAY:
        return ServerUnavailable(f"the Temporal server at {address} does not answer: {error.message[:200]}")
    if error.status in _REFUSED:
        return Forbidden(f"the Temporal server at {address} refuses {what}: {error.message[:200]}")
    if error.status is RPCStatusCode.INVALID_ARGUMENT and "search attribute" in error.message.lower():
        return InvalidRequest(
            f"the namespace {namespace!r} lacks Runyard's search attributes: {error.message[:200]}",
            remedy="Register them once with `runyard doctor --fix`.",
        )
    if error.status is RPCStatusCode.INVALID_ARGUMENT:
        return InvalidRequest(f"the Temporal server refuses {what}: {error.message[:300]}")
    return RemoteError(f"{what}: {error.message[:300]}", remote_code=error.status.name.lower())


def from_application(error: ApplicationError, *, file: str = "run file") -> RunyardError:
    """The error that a worker raised: of its own class where we know the code, else a RemoteError."""
    classes = {each.code: each for each in tree()}
    found = classes.get(error.type or "")
    message, remedy = _split(error.message)
    if found is InvalidRunFile:
        return InvalidRunFile(list(_problems(error)) or [Problem(message=error.message)], name=file)
    if found is None or found is RemoteError:
        return RemoteError(message, remote_code=error.type or "", remedy=remedy)
    return found(message, remedy=remedy)


def unknown_task(task: str, known: Iterable[str], *, run_id: str) -> NotFound:
    """The error for a task that the run does not have, with the names that are like it."""
    names = list(known)
    near = get_close_matches(task, names, n=3, cutoff=0.5) or [name for name in names if name.startswith(task)][:3]
    if near:
        return NotFound(
            f"run {run_id} has no task {task!r}", remedy=f"Did you mean {' or '.join(map(repr, near))}?"
        )
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return NotFound(f"run {run_id} has no task {task!r}", remedy=f"Its tasks: {shown}" if shown else "")


def _split(message: str) -> tuple[str, str]:
    """Activities put the remedy on a line of its own, after the message."""
    first, _, remedy = message.rpartition("\n")
    return (first, remedy) if first else (message, "")


def _problems(error: ApplicationError) -> Iterable[Problem]:
    known = Problem.__dataclass_fields__
    for detail in error.details:
        for each in detail if isinstance(detail, list) else []:
            if isinstance(each, dict) and isinstance(each.get("message"), str):
                yield Problem(**{name: value for name, value in each.items() if name in known})
