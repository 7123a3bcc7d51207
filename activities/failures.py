"""The edge between our errors and Temporal's: one place, for all activities."""

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from runyard.errors import InvalidRequest, InvalidRunFile, RunyardError
from runyard.spec.run import TaskEnd

P = ParamSpec("P")
T = TypeVar("T")


USERS_OWN = (InvalidRunFile, InvalidRequest)
"""What a user wrote is no fault of the worker's: it is not logged as one."""


def failed_task(end: TaskEnd) -> ApplicationError:
    """A task that failed, as the failure of its activity: red in the UI, and never tried again by Temporal."""
    return ApplicationError(
        end.message or end.reason.sentence,
        end,
        type=str(end.reason),
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,
    )


def application_error(error: RunyardError) -> ApplicationError:
    """``type`` is the error's code; what may get better by itself is retried."""
    details: list[object] = []
    benign = isinstance(error, USERS_OWN)
    if isinstance(error, InvalidRunFile):
        details = [[vars(problem) for problem in error.problems]]
    return ApplicationError(
        f"{error.message}\n{error.remedy}" if error.remedy else error.message,
        *details,
        type=error.code,
        non_retryable=not error.retryable,
        category=ApplicationErrorCategory.BENIGN if benign else ApplicationErrorCategory.UNSPECIFIED,
    )


def translate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Let an activity raise our errors; Temporal sees ApplicationErrors."""

    @functools.wraps(function)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except RunyardError as error:
            raise application_error(error) from error

    return wrapped
