"""The log of a worker: one line an event, text or JSON, with what it is about: run, task, attempt, pod.

What a line is about is a matter of who logs it, not of each call: an activity says so once, when it begins, and
all that is logged below it (by executors and stores, that know no run) is about the same. Each activity is an
asyncio task of its own, so nothing has to be taken back. What lives longer than the activity that happened to
start it (a watch) is given a context of its own.

The standard library's logging and not a library over it: what is logged by Temporal's SDK, aiohttp and urllib3
comes through it in any case, and what is wanted besides is the two formatters below.

No value of a variable, no output of a step and no address with a signature is ever given to it.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from runyard.spec.run import WORKFLOW

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_about: ContextVar[Mapping[str, object]] = ContextVar("about", default=_NOTHING)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TEMPORAL: Final = ("temporal_activity", "temporal_workflow", "temporal_log", "activity_info", "workflow_info")


def about(**facts: object) -> None:
    """All that this asyncio task logs from now on, and what it starts, is about these."""
    _about.set({**_about.get(), **facts})


class JsonLines(logging.Formatter):
    """A line is an object: `time`, `level`, `logger`, `message`, then what it is about and what it tells."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _last_line(record.exc_info[1])
            line["trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str, ensure_ascii=False)


class TextLines(logging.Formatter):
    """The same for people: `TIME LEVEL LOGGER: MESSAGE name=value …`. ``traces``: whole tracebacks, too."""

    def __init__(self, *, traces: bool = False) -> None:
        super().__init__()
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        message = " ".join(record.getMessage().split())
        facts = _facts(record)
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = _last_line(record.exc_info[1])
        words = [f"{name}={_word(value)}" for name, value in facts.items()]
        line = " ".join([_time(record), f"{record.levelname} {record.name}: {message}", *words])
        if self._traces and record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _last_line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())


def _facts(record: logging.LogRecord) -> dict[str, object]:
    """What Temporal's SDK knows of it, what the activity said, what the call itself told: the last one wins."""
    own = vars(record)
    told = {name: value for name, value in own.items() if name not in _STANDARD and name not in _TEMPORAL}
    facts = {**_of_temporal(own), **_about.get(), **told}
    return {name: value for name, value in facts.items() if value not in ("", None)}


def _of_temporal(own: Mapping[str, object]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for key in ("temporal_workflow", "temporal_activity"):
        details = own.get(key)
        if isinstance(details, Mapping):
            kind = "run" if details.get("workflow_type") == WORKFLOW else "workflow"
            facts |= {kind: details.get("workflow_id"), "activity": details.get("activity_id")}
    core = getattr(own.get("temporal_log"), "fields", None)  # of the SDK's native part
    return {**facts, **core} if isinstance(core, Mapping) else facts


def _word(value: object) -> str:
    """Quoted where it would not be one word."""
    text = str(value)
    plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if plain and text else json.dumps(text, ensure_ascii=False)
