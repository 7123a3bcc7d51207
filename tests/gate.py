"""A store that a test holds up."""

import asyncio
from pathlib import Path
from typing import Any

from runyard.store.base import ObjectInfo
from runyard.store.posix import PosixStore


class Gate(PosixStore):
    """A store where the writing of some keys waits until somebody opens it."""

    def __init__(self, folder: Path, word: str) -> None:
        super().__init__(folder)
        self._word = word
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def put(self, key: str, data: Any, **how: Any) -> ObjectInfo:
        if self._word in key:
            self.reached.set()
            await self.open.wait()
        return await super().put(key, data, **how)
