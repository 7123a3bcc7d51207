"""What the commands on runs have in common: a connection for one act, and following a run to its end."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runyard.cli import options
from runyard.cli.console import open_console, print_json
from runyard.cli.exits import exit_of_result

if TYPE_CHECKING:
    from runyard.client import Run, Runyard


def with_yard(
    act: Callable[["Runyard"], Awaitable[int]],
    *,
    address: str | None,
    namespace: str | None,
    state: Path | None,
    offline: bool = False,
) -> int:
    async def go() -> int:
        async with options.open_yard(address=address, namespace=namespace, state=state, offline=offline) as yard:
            return await act(yard)

    return asyncio.run(go())


async def watch_run(run: "Run", *, origin: str = "", ascii_only: bool, as_json: bool) -> int:
    from runyard.cli.follow import follow

    if as_json:
        result = await run.result()
        print_json(await run.describe())
        return exit_of_result(result.result)
    await follow(run, open_console(ascii_only=ascii_only), origin=origin)
    return exit_of_result((await run.result()).result)
