"""What a user writes, and what it is compiled to.

The functions are loaded when they are first used: a workflow imports the models of the plan from here, and
must not pay for a parser.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runyard.spec.compile import (
        compile_run,
        graph_task,
        is_skipped,
        outputs_of,
        run_names,
    )
    from runyard.spec.jsonschema import schema
    from runyard.spec.parse import lint
    from runyard.spec.run import task_id
    from runyard.spec.source import decode

__all__ = [
    "compile_run",
    "decode",
    "graph_task",
    "is_skipped",
    "lint",
    "outputs_of",
    "run_names",
    "schema",
    "task_id",
]

_HOMES = {"decode": "source", "lint": "parse", "schema": "jsonschema", "task_id": "run"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'compile')}"), name)
