"""The library's blocking calls from asynchronous code: threads, and another try where that may help.

The library is blocking, so each request needs a thread while it lasts. They come from one pool of the store's
own: asyncio's, which files and names share, would be held by a store that stalls. Retries are here and not in
urllib3, because a request has to be signed anew (its time is part of the signature), because a wait should hold
no thread, and because a cancel should end it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import ParamSpec, TypeVar

from runyard.store.s3.answers import RAISED, Judgement
from runyard.store.threads import settle

THREADS = 24
"""So many requests at once; others wait. A worker with thousands of tasks is bound by its processor before."""

PATIENCE_S = 20.0
"""No further try later than this: whoever called (an activity) has its own, longer patience."""

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class Calls:
    """Runs functions in the store's threads; ``judge`` says what their errors mean."""

    def __init__(self, judge: Callable[[Exception, str], Judgement]) -> None:
        self._judge = judge
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")

    async def ask(self, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of ``function``, which changes nothing: a cancel leaves it to itself."""
        return await self._persist(doing, partial(function, *args, **kwargs), self._submit)

    async def act(self, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``function``, which changes something: a cancel waits for its end.

        What comes after the cancel (another write, an abort) must not be overtaken by it.
        """
        return await self._persist(
            doing, partial(function, *args, **kwargs), lambda call: settle(self._submit(call))
        )

    async def _persist(
        self, doing: str, function: Callable[[], T], call: Callable[[Callable[[], T]], Awaitable[T]]
    ) -> T:
        """Try as often as it is worth it. Raises errors of our tree."""
        begin = time.monotonic()
        for tried in count(1):
            try:
                return await call(function)
            except RAISED as raised:
                judgement = self._judge(raised, doing)
                if tried >= judgement.tries or time.monotonic() - begin > PATIENCE_S:
                    raise judgement.error from raised
            await asyncio.sleep(wait_s(tried))
        raise AssertionError("the loop ends by itself")

    def _submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function)

    def close(self) -> None:
        """Calls under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def wait_s(tried: int) -> float:
    """Longer each time, and never the same for two who were turned away together."""
    return random.uniform(0.5, 1) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (tried - 1))
