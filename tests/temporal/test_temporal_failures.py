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
