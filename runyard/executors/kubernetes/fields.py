"""Reading JSON of which nothing is certain.

What an API server sends is nearly always as documented, and the rest must not end a worker: a field that is
absent or of another kind reads as nothing. So whoever judges a status is total without a `try`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

Json = Mapping[str, object]
_NOTHING: Json = {}


def part(value: object, *path: str) -> Json:
    """The object at that path, or an empty one."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else _NOTHING


def parts(value: object, *path: str) -> Iterator[Json]:
    """The objects of the list at that path."""
    found = part(value, *path[:-1]).get(path[-1])
    if isinstance(found, list):
        yield from (each for each in found if isinstance(each, Mapping))


def text(value: object, *path: str) -> str:
    found = part(value, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""


def whole(value: object, *path: str) -> int | None:
    found = part(value, *path[:-1]).get(path[-1])
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def moment(value: object, *path: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text(value, *path))
    except ValueError:
        return None
    try:
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (OverflowError, ValueError):  # of the year 1 or 9999
        return None


def seconds(value: object, *path: str) -> float | None:
    """A number of seconds in an annotation."""
    try:
        found = float(text(value, *path))
    except ValueError:
        return None
    return found if 0 <= found < 1e12 else None
