"""Who looks at a run: a process of its own, as a person's command is, that asks `describe` until the run ends.

``python -m benchmarks.ask ADDRESS STORE RUN [SECONDS]``: it prints how many answers there were, the median and
the slowest, in seconds, as JSON.
"""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from runyard.client import Runyard
from runyard.settings import Settings
from runyard.store.posix import PosixStore
from runyard.temporal import connect


async def ask(address: str, store: Path, run_id: str, every_s: float) -> None:
    client = await connect(address=address)
    run = Runyard(client, PosixStore(store, durable=False), settings=Settings()).run(run_id)
    answers: list[float] = []
    while True:
        asked = time.perf_counter()
        view = await run.describe()
        answers.append(time.perf_counter() - asked)
        if view.ended_at is not None:
            break
        await asyncio.sleep(every_s)
    print(json.dumps({"answers": len(answers), "median": statistics.median(answers), "slowest": max(answers)}))


if __name__ == "__main__":
    every_s = float(sys.argv[4]) if len(sys.argv) > 4 else 2.0
    asyncio.run(ask(sys.argv[1], Path(sys.argv[2]), sys.argv[3], every_s))
