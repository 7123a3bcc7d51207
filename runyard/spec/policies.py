"""What becomes of a task that fails, hangs or needs people, and of a run that is not alone, as users write it."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from runyard.errors import InvalidRequest
from runyard.model import Input
from runyard.reasons import Reason
from runyard.spec import values
from runyard.spec.group import EXAMPLE, check_group, parse_policy
from runyard.spec.tree import Written, clip, did_you_mean
from runyard.spec.values import Count, Duration, Filled, Positive, PositiveDuration

_NOT_RETRIED = (
    Reason.SUCCESS,
    Reason.CANCELLED,
    Reason.SUPERSEDED,
    Reason.REJECTED,
    Reason.APPROVAL_EXPIRED,
    Reason.DEPENDENCY,
    Reason.WHEN,
    Reason.NEVER_STARTED,
)
RETRY_REASONS = tuple(reason.value for reason in Reason if reason not in _NOT_RETRIED)


class Backoff(Input):
    """The wait before another attempt: ``initial``, then ``factor`` times the last, at most ``max``."""

    initial: Duration = 5.0
    factor: values.Factor = 2.0
    max: Duration = 300.0


def _backoff(value: object) -> object:
    return value if isinstance(value, dict) else {"initial": value}


def _retry(value: object) -> object:
    return {"limit": value} if isinstance(value, str) else value


def _retry_on(value: object) -> int | str:
    number = value.value if isinstance(value, Written) else value
    if isinstance(number, str) and number.isdigit() and len(number) < 4:
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        if not 1 <= number <= 255:
            raise values.wrong("an exit code to retry on is from 1 to 255")
        return number
    word = values.text(value)
    if word not in RETRY_REASONS:
        hint = did_you_mean(word, RETRY_REASONS) or f"known reasons: {', '.join(RETRY_REASONS)}"
        raise values.wrong(f"`{clip(word)}` is not a reason to retry on", hint)
    return word


def _few(value: object) -> list[object]:
    return values.words(value, most=300)


_ON_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": 255}, {"enum": [*RETRY_REASONS]}]
}
RetryOn = Annotated[int | str, PlainValidator(_retry_on), WithJsonSchema(_ON_SCHEMA)]


class Retry(Input):
    """Further attempts of a task that failed."""

    limit: Count = Field(0, description="Further attempts at most")
    backoff: Annotated[
        Backoff,
        BeforeValidator(_backoff),
        values.Or(({"type": ["string", "integer"]},)),
    ] = Backoff()
    on: Annotated[list[RetryOn], BeforeValidator(_few)] = Field(
        [], description="Exit codes and reasons; by default every failure of the task's own program"
    )
    infra: Count = Field(0, description="Further attempts after a loss when steps had begun")


RetryOf = Annotated[Retry, BeforeValidator(_retry), values.Or(({"type": "integer", "minimum": 0},))]


class Timeouts(Input):
    """Each with its own reason when it strikes; 0 = none."""

    queue: Duration | None = Field(None, description="Waiting for room")
    pending: Duration | None = Field(None, description="Placed, but not begun: image, node, volume; 5m by default")
    run: Duration | None = Field(None, description="All steps together")
    step: Duration | None = Field(None, description="Each step")


class Approval(Input):
    """A task that waits for people."""

    approvers: Positive = Field(1, description="How many different people")
    allowed: list[Filled] = Field([], description="Who may; everybody by default")
    expires: PositiveDuration | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Approval":
        if self.allowed and len(set(self.allowed)) < self.approvers:
            raise values.wrong("more approvers are needed than are allowed")
        return self


def _approval(value: object) -> object:
    if isinstance(value, dict):
        return value
    return Approval() if values.flag(value) else None


ApprovalOf = Annotated[
    Approval | None,
    BeforeValidator(_approval),
    values.Or(({"type": "boolean"},)),
]


def _group(value: object) -> str:
    words = values.text(value)
    try:
        return check_group(words) if words else ""
    except InvalidRequest as error:
        raise values.wrong(error.message, f"write a path such as {EXAMPLE}") from error


def _group_policy(value: object) -> str:
    several = isinstance(value, dict) and value.keys() == {"parallel"}
    words = f"parallel: {values.native(value['parallel'])}" if several else values.text(value)  # type: ignore[index]
    try:
        parse_policy(words)
    except InvalidRequest as error:
        known = "`queue`, `parallel: 3`, `cancel-superseded` and `skip-if-running`"
        raise values.wrong(error.message, f"there are {known}") from error
    return words


GroupPath = Annotated[str, PlainValidator(_group), WithJsonSchema({"type": "string", "pattern": "^(/.*)?$"})]
_POLICIES = "^(queue|parallel: *[1-9][0-9]*|cancel-superseded|skip-if-running)?$"
GroupPolicy = Annotated[
    str,
    PlainValidator(_group_policy),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _POLICIES},
                {
                    "type": "object",
                    "properties": {"parallel": {"type": "integer", "minimum": 1, "maximum": 9999}},
                    "required": ["parallel"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
