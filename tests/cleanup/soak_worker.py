"""A worker in a process of its own, to be killed, by the settings of its environment. Says when it serves.

python soak_worker.py ADDRESS
"""

import asyncio
import sys

from runyard.settings import Settings
from runyard.temporal import connect
from workers.serve import serve


async def main(address: str) -> None:
    ready = asyncio.Event()
    client = await connect(address=address)
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(client, Settings(), executors=["local"], ready=ready))
        await ready.wait()
        print("serving", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
