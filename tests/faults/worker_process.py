"""A worker in a process of its own, to be killed: by the test, or by itself at a fault point.

    python worker_process.py ADDRESS STATE [POINT[:NUMBER]]

It kills itself with SIGKILL when it comes to POINT for the NUMBERth time (default 1).
"""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from runyard.executors.open import open_executor
from runyard.settings import Settings
from runyard.store.posix import PosixStore
from runyard.temporal import connect
from workers.serve import build_workers


async def main(address: str, state: Path, at: str) -> None:
    point, _, number = at.partition(":")
    left = int(number or 1)

    def fault(here: str) -> None:
        nonlocal left
        if here == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    client = await connect(address=address)
    executor = open_executor("local", Settings(state=state, local_slots=8))
    async with AsyncExitStack() as stack:
        for worker in build_workers(client, PosixStore(state / "store"), [executor], fault=fault):
            await stack.enter_async_context(worker)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
