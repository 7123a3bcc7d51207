"""Are the packages `workflows`, `activities` and `workers` that Python finds really Runyard's?

Their names are common. The worker side is an application, meant to be installed in an environment of its own;
where another package shadows one of them, it must be said before an import fails in a strange place.
"""

import importlib.util
from pathlib import Path

import runyard
from runyard.errors import Conflict

_PACKAGES = ("workflows", "activities", "workers")


def require_ours() -> None:
    """Raises Conflict with the file of the stranger."""
    if stranger := find_stranger():
        name, place = stranger
        raise Conflict(
            f"another package `{name}` hides Runyard's: {place}",
            remedy="Install Runyard in an environment of its own: `pipx install runyard` or "
            "`uv tool install runyard`. Only `runyard.client` works beside that package.",
        )


def find_stranger() -> tuple[str, str] | None:
    """Name and place of the first package that is not ours, or is missing."""
    home = Path(runyard.__file__ or "").resolve().parent.parent
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return name, "it is not installed"
        places = [str(place) for place in spec.submodule_search_locations or [spec.origin or "unknown"]]
        if not any(Path(place).resolve() == home / name for place in places):
            return name, places[0]
    return None
