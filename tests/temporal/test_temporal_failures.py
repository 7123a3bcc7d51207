"""What a failure looks like in a history: the cause first, and a stack trace only where it helps."""

from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from activities.failures import application_error
from runyard.errors import ConfigError, StoreError
from runyard.temporal import data_converter


def written(error: Exception) -> Failure:
    converter, failure = data_converter(), Failure()
    try:
        raise error
    except Exception as raised:
        converter.failure_converter.to_failure(raised, converter.payload_converter, failure)
    return failure


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_failed_run_is_its_cause() -> None:
    failure = written(ApplicationError("1 of 2 tasks failed: lint", type="RunFailed", non_retryable=True))
    assert failure.message == "1 of 2 tasks failed: lint"
    assert not failure.stack_trace


def test_our_own_error_is_not_said_twice() -> None:
    error = ConfigError("no secret 'x'")
    failure = written(caused(application_error(error), error))
    assert failure.message.startswith("no secret 'x'")
    assert not failure.HasField("cause")


def test_what_was_not_foreseen_keeps_its_trace_and_its_cause() -> None:
    bug = written(ValueError("a bug"))
    assert "in written" in bug.stack_trace
    store = StoreError("the store is away")
    again = written(caused(application_error(store), caused(store, OSError("no route"))))
    assert again.cause.cause.message == "no route"


def test_what_is_tried_again_keeps_its_trace() -> None:
    assert "in written" in written(ApplicationError("later", type="later")).stack_trace


SHOWN_BYTES = 4 << 10
"""A server keeps that much of the last failure of an activity that it tries again, and hides the rest."""


def deep(levels: int) -> None:
    if not levels:
        raise OSError("Read-only file system")
    deep(levels - 1) if levels % 2 else deeper(levels)


def deeper(levels: int) -> None:
    """Two that call each other: a trace does not shorten that, as it does one that calls itself."""
    deep(levels - 1)


def test_a_failure_from_deep_down_is_small_enough_to_be_shown() -> None:
    try:
        try:
            try:
                deep(60)
            except OSError as error:
                raise StoreError(f"permission denied when writing `{'long/' * 60}`") from error
        except StoreError as error:
            raise application_error(error) from error
    except ApplicationError as error:
        failure = written(error)
    assert failure.ByteSize() < SHOWN_BYTES
    assert "permission denied" in failure.message
    assert "Read-only file system" in failure.cause.cause.message
    assert "raise OSError" in failure.cause.cause.stack_trace
