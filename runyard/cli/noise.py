"""What libraries log while a command works: not for those who only want to see their run."""

import logging

from runyard.cli.exits import debugging


class OneLine(logging.Formatter):
    """An exception as its last line; the whole traceback only for those who asked for it."""

    def formatException(self, ei: object) -> str:  # noqa: N802 - the library's name
        text = super().formatException(ei)  # type: ignore[arg-type]
        return text if debugging() else text.rstrip().rpartition("\n")[2]


def quiet() -> None:
    """Nothing at all: what matters comes back as an error or is in a log of the run."""
    if debugging():
        to_stderr()
        return
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    _tell_core("ERROR")


def to_stderr(*, metrics: str = "") -> None:
    """Warnings, a line each: for a process that serves, where stderr is its log. ``metrics``: see _tell_core."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _tell_core("WARN", metrics=metrics)


def _tell_core(level: str, *, metrics: str = "") -> None:
    """The SDK's native part prints, and at the address ``metrics`` counts; it is told before it connects."""
    from temporalio.runtime import LoggingConfig, PrometheusConfig, Runtime, TelemetryConfig, TelemetryFilter

    told = TelemetryFilter(core_level=level, other_level="ERROR")
    served = (
        PrometheusConfig(
            bind_address=metrics, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
        )
        if metrics
        else None
    )
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=told), metrics=served))
    Runtime.set_default(runtime, error_if_already_set=False)
