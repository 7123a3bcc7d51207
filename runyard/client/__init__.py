"""The programmatic surface: start runs, follow them, read their logs, decide.

    async with Runyard.connect() as yard:
        run = await yard.start("ci.yml", run="build-and-test")
        async for line in run.logs("test", follow=True):
            print(line)
        print((await run.result()).phase)

It starts workflows by name and imports none of `workflows`, `activities`, `workers`, so that a program with a
`workflows` package of its own can use it. What is exported is loaded at its first use: reading a run file
does not need Temporal's SDK.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runyard.client.listing import Phase
    from runyard.client.logs import LogLine
    from runyard.client.paging import RunPage
    from runyard.client.run import Run
    from runyard.client.yard import Runyard
    from runyard.spec.events import Event

__all__ = ["Event", "LogLine", "Phase", "Run", "RunPage", "Runyard"]

_HOMES = {
    "Event": "runyard.spec.events",
    "LogLine": f"{__name__}.logs",
    "Phase": f"{__name__}.listing",
    "Run": f"{__name__}.run",
    "RunPage": f"{__name__}.paging",
    "Runyard": f"{__name__}.yard",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
