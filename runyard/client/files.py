"""What a run is started from: the run file's text, judged before anything is sent."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from runyard.errors import InvalidRequest, NotFound
from runyard.spec import compile_run, decode
from runyard.spec.plan import Plan
from runyard.spec.run import RunRequest

_ID_BYTES = 200


async def check(request: RunRequest) -> Plan:
    """What the run would be, with nothing started. Raises InvalidRunFile, InvalidRequest."""
    # a thread, since compiling 10,000 tasks takes seconds and a program's other work shares this loop
    return await asyncio.to_thread(compile_run, request, run_id="check", execution_id="check")


def check_run_id(run_id: str) -> str:
    """The id itself: it is part of keys in the store. Raises InvalidRequest."""
    bad = not run_id or len(run_id.encode()) > _ID_BYTES or run_id in (".", "..")
    if bad or any(char in "/\\`" or not char.isprintable() or char.isspace() for char in run_id):
        raise InvalidRequest(
            f"a run's id is 1 to {_ID_BYTES} bytes without spaces and slashes, not {run_id[:80]!r}"
        )
    return run_id


def read_file(file: str | Path | Mapping[str, JsonValue]) -> tuple[str | dict[str, JsonValue], str]:
    """A run file's text (or object) and its name for messages. A str of one line that isn't JSON is a path.

    Raises NotFound, InvalidRunFile (not text).
    """
    if isinstance(file, Mapping):
        return dict(file), "run file"
    if isinstance(file, str) and ("\n" in file or file.lstrip().startswith("{")):
        return file, "run file"
    path = Path(file)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"there is no run file {path}", remedy="Give its path, or write .runyard/config.yml."
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"the run file {str(path)[:200]!r} cannot be read: {error}") from error
    return decode(data, name=str(path)), str(path)
