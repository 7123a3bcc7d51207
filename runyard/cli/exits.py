"""Exit codes, and how an error is said: the CLI's edge of the error tree.

| code | meaning |
|---|---|
| 0 | success |
| 1 | the run failed |
| 2 | usage: the command, its arguments, or the present state of things does not allow it |
| 3 | the run file is not valid |
| 4 | not found |
| 5 | a server, store or executor cannot be reached or used |
| 6 | cancelled |
| 70 | Runyard itself failed |
"""

import json
import os
import sys
from enum import IntEnum

from runyard.errors import (
    Conflict,
    ExecutorError,
    Forbidden,
    InvalidRequest,
    InvalidRunFile,
    NotFound,
    RunyardError,
    ServerUnavailable,
    StoreError,
)


class Exit(IntEnum):
    """What the command says to the shell."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    INVALID = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    CANCELLED = 6
    INTERNAL = 70


_CODES: tuple[tuple[type[RunyardError], Exit], ...] = (
    (InvalidRunFile, Exit.INVALID),
    (InvalidRequest, Exit.USAGE),
    (Conflict, Exit.USAGE),
    (Forbidden, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (StoreError, Exit.UNREACHABLE),
    (ExecutorError, Exit.UNREACHABLE),
    (ServerUnavailable, Exit.UNREACHABLE),
)


def exit_of(error: RunyardError) -> Exit:
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.INTERNAL)


def exit_of_result(result: str) -> Exit:
    """Of a run by the word of its result."""
    return {"success": Exit.SUCCESS, "stopped": Exit.CANCELLED}.get(result, Exit.FAILED)


def debugging() -> bool:
    return os.environ.get("RUNYARD_DEBUG", "") not in ("", "0")


def say(error: RunyardError, *, as_json: bool) -> Exit:
    """Print an error on stderr: sentences for people, one JSON object for programs."""
    code = exit_of(error)
    if as_json:
        print(json.dumps(error_object(error, code)), file=sys.stderr)
    elif isinstance(error, InvalidRunFile):
        print(error.message, file=sys.stderr)
    else:
        print(f"runyard: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
    return code


def error_object(error: RunyardError, code: Exit) -> dict[str, object]:
    """`{code, message, remedy, exit, details}`, the same shape as elsewhere."""
    details = [vars(problem) for problem in error.problems] if isinstance(error, InvalidRunFile) else []
    shown: dict[str, object] = {
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "exit": int(code),
    }
    return {**shown, "details": details} if details else shown


def say_usage(message: str, *, hint: str = "", as_json: bool) -> Exit:
    if as_json:
        shown = {"code": "usage", "message": message, "remedy": hint, "exit": int(Exit.USAGE)}
        print(json.dumps(shown), file=sys.stderr)
    else:
        print(f"runyard: {message}", file=sys.stderr)
        if hint:
            print(f"  {hint}", file=sys.stderr)
    return Exit.USAGE


def say_bug(error: BaseException, *, as_json: bool) -> Exit:
    """Something that none of our errors describes: no traceback, unless somebody asked for one."""
    message = f"Runyard itself failed: {type(error).__name__}: {str(error)[:500]}"
    remedy = "Please report it, with what RUNYARD_DEBUG=1 shows."
    if as_json:
        shown = {"code": "error", "message": message, "remedy": remedy, "exit": int(Exit.INTERNAL)}
        print(json.dumps(shown), file=sys.stderr)
    else:
        print(f"runyard: {message}\n  {remedy}", file=sys.stderr)
    return Exit.INTERNAL
