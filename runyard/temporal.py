"""How we speak to Temporal: the data converter, the connection, the names that a namespace must know.

Payloads are plain JSON, so that every SDK, the `temporal` command and the UI can read and write them. Only
those of 32 KiB and more (the graph of a run of thousands of tasks) are compressed: a history holds them many
times, and nobody reads them as text. Bytes that came from elsewhere uncompressed are taken as they are.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Final

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import PydanticPayloadConverter, ToJsonOptions
from temporalio.converter import DataConverter, DefaultFailureConverter, PayloadConverter
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from runyard.errors import RunyardError, ServerUnavailable

COMPRESS_FROM_BYTES: Final = 32 << 10
MAX_UNPACKED_BYTES: Final = 64 << 20

PROJECT: Final = SearchAttributeKey.for_keyword("RunyardProject")
GROUP: Final = SearchAttributeKey.for_keyword("RunyardGroup")
OWNER: Final = SearchAttributeKey.for_keyword("RunyardOwner")
TRIGGER: Final = SearchAttributeKey.for_keyword("RunyardTrigger")
STAGE: Final = SearchAttributeKey.for_keyword("RunyardStage")
FAILED_TASKS: Final = SearchAttributeKey.for_keyword_list("RunyardFailedTasks")
TASKS: Final = SearchAttributeKey.for_int("RunyardTasks")
COUNTER: Final = SearchAttributeKey.for_int("RunyardCounter")

SEARCH_ATTRIBUTES: Final[dict[str, str]] = {
    PROJECT.name: "Keyword",
    GROUP.name: "Keyword",
    OWNER.name: "Keyword",
    TRIGGER.name: "Keyword",
    STAGE.name: "Keyword",
    FAILED_TASKS.name: "KeywordList",
    TASKS.name: "Int",
    COUNTER.name: "Int",
}

CLOSING: Final = "RunyardClosing"
"""Memo: the execution (its run id) that is about to continue as new; who has a question waits for the next one."""

CREATED: Final = "RunyardCreated"
"""Memo of a run that has continued as new: when its first execution was started."""

DYNAMIC_CONFIG: Final[dict[str, str]] = {
    # a cancel reaches an activity at once instead of with its next heartbeat
    "system.enableCancelActivityWorkerCommand": "true",
    "frontend.WorkerCommandsEnabled": "true",
    # owners share a queue fairly; with one partition the order is exact, and one is enough for one machine
    "matching.enableFairness": "true",
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
    # the default of 2,400 requests a second is for many tenants; ours is one
    "frontend.namespaceRPS": "20000",
    "frontend.persistenceMaxQPS": "100000",
    "history.persistenceMaxQPS": "100000",
    "matching.persistenceMaxQPS": "100000",
    # a shard looks for new work 20 times a second at most, and one machine has one shard: each step of a chain
    # waited up to 50 ms for it (measured: 100 ms a task for three empty activities, 30 without)
    "history.transferProcessorMaxPollRPS": "1000",
    # with more than 100 events that came while a workflow task is under way the server gives that task up, and the
    # worker has to replay the whole history: a run of many short tasks did so again and again
    "history.maximumBufferedEventsBatch": "5000",
    "history.maximumBufferedEventsSizeInBytes": "33554432",
}
"""Of the embedded server only: a server of your own keeps its settings."""


class Converter(PydanticPayloadConverter):
    """Pydantic's JSON without what was not set: histories stay short and legible, readers know the defaults.

    The compression is done here and not by a payload codec: a codec makes the SDK visit every payload of every
    activation once more, which costs a run of many small tasks a quarter of its time (measured).
    """

    ENCODING: Final = b"binary/zlib"

    def __init__(self) -> None:
        super().__init__(ToJsonOptions(exclude_unset=True))

    def to_payloads(self, values: Sequence[Any]) -> list[Payload]:
        return [self._pack(payload) for payload in super().to_payloads(values)]

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        return super().from_payloads([self._unpack(payload) for payload in payloads], type_hints)

    def _pack(self, payload: Payload) -> Payload:
        if len(payload.data) < COMPRESS_FROM_BYTES:
            return payload
        return Payload(
            metadata={"encoding": self.ENCODING}, data=zlib.compress(payload.SerializeToString(), level=1)
        )

    def _unpack(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != self.ENCODING:
            return payload
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(payload.data, MAX_UNPACKED_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError(f"a payload unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return Payload.FromString(data)


class Failures(DefaultFailureConverter):
    """Failures that were foreseen say what is wrong in their message: a stack trace would only hide it.

    In the UI a failed run is its cause, and not a page of the SDK's own lines. Foreseen is what we say is not
    to be tried again; whatever else is raised, a bug above all, keeps the end of its trace. The end only,
    because a server shows of an activity that it tries again 4 KB: of a larger failure it hides even the message.
    """

    TRACE_CHARACTERS: Final = 700

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        super().to_failure(exception, payload_converter, failure)
        if len(failure.stack_trace) > self.TRACE_CHARACTERS:
            failure.stack_trace = f"…{failure.stack_trace[-self.TRACE_CHARACTERS :]}"
        if not isinstance(exception, ApplicationError):
            return
        if isinstance(exception.__cause__, RunyardError):  # raised where it was translated: of no interest
            failure.stack_trace = ""
        if exception.non_retryable:
            failure.stack_trace = ""
            cause = exception.__cause__
            if isinstance(cause, RunyardError) and cause.__cause__ is None:  # the same words once more
                failure.ClearField("cause")


def data_converter() -> DataConverter:
    """Needed on every client, worker and replayer of Runyard's workflows that is written in Python."""
    return DataConverter(payload_converter_class=Converter, failure_converter_class=Failures)


async def connect(
    *, address: str | None = None, namespace: str | None = None, profile: str | None = None
) -> Client:
    """A client, by Temporal's own environment variables and profile file; arguments win over both.

    Raises ServerUnavailable with the address that was tried.
    """
    config = ClientConfig.load_client_connect_config(profile=profile)
    config["target_host"] = address or config.get("target_host") or "localhost:7233"
    if namespace:
        config["namespace"] = namespace
    try:
        return await Client.connect(**config, data_converter=data_converter())
    except (RuntimeError, RPCError, OSError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ServerUnavailable(f"no Temporal server answers at {config['target_host']}: {cause}") from error
