"""Python's search for garbage, put off while there is none.

What a command imports stays, and so does what it notes of a checkout, until the run has started. Python searches
it 200 times meanwhile, which is a tenth of what `run start --local` takes. A command that goes on after that
collects as any program does, but does not look through what is there by then, which would be for nothing.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it only what nobody refers to goes, and no cycles."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
