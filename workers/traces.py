"""Spans by OTLP over HTTP, with OpenTelemetry's SDK: imported only where its own variables ask for it.

All that is to be set is set by `OTEL_…` as everywhere else: endpoint, headers, service name, resource attributes,
sampler, batches. The SDK is given our ids through its own seam for that, an `IdGenerator`; its clock is not used.
Its exporter has a thread of its own: it blocks, and a collector that is away must not hold up the worker.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from runyard.errors import ConfigError
from runyard.spec.plan import RunPlan
from runyard.traces import NO_TRACES, Place, Span, Traces, parse, place_of_run

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"

_CLOSE_S = 3.0
"""A collector that is away must not hold up whoever wants to leave."""

log = logging.getLogger(__name__)


def asked_for() -> bool:
    """Whether the environment names a collector, and nothing switches traces off."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporters = [each.strip() for each in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    return not off and "otlp" in exporters and any(os.environ.get(name) for name in _ENDPOINTS)


@asynccontextmanager
async def traced() -> AsyncIterator[Traces]:
    """Where spans go while the block runs, as the environment has it: nowhere, unless it names a collector.

    Nowhere also where it asks for what cannot be had, which is logged: the variables may be there for the sake of
    other programs, and no run should fail for want of somebody who watches it.
    """
    if not asked_for():
        yield NO_TRACES
        return
    try:
        traces = open_traces()
    except ConfigError as error:
        log.warning("no traces are sent: %s", error.message, extra={"remedy": error.remedy})
        yield NO_TRACES
        return
    try:
        yield traces
    finally:
        closing = asyncio.ensure_future(asyncio.to_thread(traces.close))  # it waits for the collector
        done, _ = await asyncio.wait({closing}, timeout=_CLOSE_S)
        if not done:
            log.warning("spans are lost: the collector does not take them")
            traces.give_up()
        await closing


def open_traces() -> "OtlpTraces":
    """For who has ``asked_for`` them. Raises ConfigError."""
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise ConfigError(
            f"traces are sent by {_PROTOCOL}, not by {protocol!r}",
            remedy=f"Set {_PROTOCOLS[1]}={_PROTOCOL} and the collector's port for it, 4318 as a rule.",
        )
    try:
        return OtlpTraces()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"traces need the package {error.name}",
            remedy="Install `runyard[otel]`, or unset the OTEL_ variables.",
        ) from error


class OtlpTraces:
    """The `Traces` of one worker. `close` sends what is left."""

    on = True

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        from runyard import __version__

        class Given(IdGenerator):
            """What was said just before: a span is made in one go, on one thread."""

            trace = span = 0

            def generate_trace_id(self) -> int:
                return self.trace

            def generate_span_id(self) -> int:
                return self.span

        class Exporter(OTLPSpanExporter):
            """One that may be shut down twice: by who gives up, and by who closes."""

            over = False

            def shutdown(self) -> None:
                if not self.over:
                    self.over = True
                    super().shutdown()  # type: ignore[no-untyped-call]

        self._given = Given()
        usual = {"service.name": "runyard", "service.version": __version__}
        named = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else usual)
        self._provider = TracerProvider(resource=named, id_generator=self._given, shutdown_on_exit=False)
        self._exporter = Exporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("runyard", __version__)

    def begin(self, run: RunPlan) -> Place | None:
        """None where whoever started the run, or the sampler, does not want it."""
        from opentelemetry.sdk.trace.sampling import Decision

        place, above = place_of_run(run), parse(run.traceparent)
        decided = self._provider.sampler.should_sample(
            _context(above) if above else None, int(place.trace, 16), run.name
        )
        return place if decided.decision is Decision.RECORD_AND_SAMPLE else None

    def tell(self, span: Span) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, StatusCode

        self._given.trace, self._given.span = int(span.place.trace, 16), int(span.place.span, 16)
        made = self._tracer.start_span(
            span.name,
            context=_context(span.parent) if span.parent else Context(),
            attributes={name: value for name, value in span.attributes.items() if value != ""},
            links=[Link(_span_context(span.link))] if span.link else [],
            start_time=_nanoseconds(span.started_at),
        )
        if span.error is not None:
            made.set_status(StatusCode.ERROR, span.error)
        made.end(_nanoseconds(max(span.started_at, span.ended_at)))

    def give_up(self) -> None:
        """Let no request be tried again: `close` then returns."""
        self._exporter.shutdown()

    def close(self) -> None:
        """Blocks, for some seconds where the collector is away."""
        with suppress(Exception):  # whoever closes is on the way out, and the SDK logs what it could not send
            self._provider.shutdown()


def _context(place: Place) -> "Context":
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(_span_context(place)), Context())


def _span_context(place: Place) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if place.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(place.trace, 16), int(place.span, 16), is_remote=True, trace_flags=flags)


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000) * 1000
