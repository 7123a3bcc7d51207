"""What libraries log while a command works: not for those who only want to see their run."""

import logging

from runyard.cli.exits import debugging

_OURS = ("runyard", "activities", "workflows", "workers", "temporalio.activity", "temporalio.workflow")


def quiet() -> None:
    """Nothing at all: what matters comes back as an error or is in a log of the run."""
    if debugging():
        to_stderr(level="debug")
        return
    for name in ("temporalio", *_OURS):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _tell_core("ERROR")


def to_stderr(*, lines: str = "text", level: str = "warning", metrics: str = "") -> None:
    """A line each: for a process that serves, where stderr is its log. ``metrics``: see _tell_core.

    ``level`` is that of our own lines, and of what Temporal's SDK says of our activities and workflows; of
    everything else only warnings are told.
    """
    from temporalio import activity, workflow

    from runyard.worklog import JsonLines, TextLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if lines == "json" else TextLines(traces=debugging()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    # as fields of the line, and not as a dictionary at the message's end
    activity.logger.activity_info_on_message = workflow.logger.workflow_info_on_message = False
    _tell_core("WARN", metrics=metrics, logger=logging.getLogger("temporalio.core"))


def _tell_core(level: str, *, metrics: str = "", logger: logging.Logger | None = None) -> None:
    """The SDK's native part logs, and at the address ``metrics`` counts; it is told before it connects."""
    from temporalio.runtime import (
        LogForwardingConfig,
        LoggingConfig,
        PrometheusConfig,
        Runtime,
        TelemetryConfig,
        TelemetryFilter,
    )

    told = TelemetryFilter(core_level=level, other_level="ERROR")
    served = (
        PrometheusConfig(
            bind_address=metrics, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
        )
        if metrics
        else None
    )
    forwarded = (
        LogForwardingConfig(
            logger=logger,
            append_target_to_name=False,
            prepend_target_on_message=False,
            append_log_fields_to_message=False,
        )
        if logger
        else None
    )
    logging_config = LoggingConfig(filter=told, forwarding=forwarded)
    runtime = Runtime(telemetry=TelemetryConfig(logging=logging_config, metrics=served))
    Runtime.set_default(runtime, error_if_already_set=False)
