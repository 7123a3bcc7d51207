"""A worker in a process of its own, to be killed, by the settings of its environment.

python soak_worker.py ADDRESS
"""

import asyncio
import sys

from runyard.settings import Settings
from runyard.temporal import connect
from workers.serve import serve


async def main(address: str) -> None:
    await serve(await connect(address=address), Settings(), executors=["local"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
