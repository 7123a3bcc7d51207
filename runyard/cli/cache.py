"""`runyard cache`: what the caches of a store hold, and how to be rid of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from runyard.cli import options
from runyard.cli.console import print_json
from runyard.cli.exits import Exit
from runyard.cli.text import clean, seconds
from runyard.errors import InvalidRequest, NotFound
from runyard.store.base import ObjectStore


@click.group()
def cache() -> None:
    """List and remove caches."""


@cache.command("list")
@click.option("--group", help="Only of this cache group.")
@options.state
@options.output
def list_(*, group: str | None, state: Path | None, output: str) -> int:
    """All entries, by group and key."""
    from runyard.records.caches import list_caches, list_groups

    async def act(store: ObjectStore) -> int:
        groups = [group] if group is not None else await list_groups(store)
        entries = [entry for each in groups for entry in await list_caches(store, each)]
        if output == "json":
            print_json(entries)
            return Exit.SUCCESS
        now = datetime.now(UTC)
        for entry in entries:
            ago = seconds((now - entry.used).total_seconds())
            click.echo(f"{size(entry.size):>10}  {clean(entry.group)}  {clean(entry.key)}  used {ago} ago")
        if not entries:
            click.echo("no caches")
        return Exit.SUCCESS

    return _with_store(act, state=state)


@cache.command("stat")
@click.argument("group")
@click.argument("key", required=False)
@options.state
@options.output
def stat(group: str, *, key: str | None, state: Path | None, output: str) -> int:
    """One entry, or a whole group: how much it is, since when, when it was last used."""
    from runyard.records.caches import list_caches, stat_cache

    async def act(store: ObjectStore) -> int:
        entries = await list_caches(store, group) if key is None else [await stat_cache(store, group, key)]
        if not entries:
            raise _no_group(group)
        total = sum(entry.size for entry in entries)
        created, used = min(entry.created for entry in entries), max(entry.used for entry in entries)
        what = {"entries": len(entries)} if key is None else {"key": key, "file": entries[0].file}
        if output == "json":
            times = {"created": created.isoformat(), "used": used.isoformat()}
            print_json({"group": group, **what, "size": total, **times})
            return Exit.SUCCESS
        words = {"group": group, **what, "size": size(total), "created": _when(created), "used": _when(used)}
        for name, value in words.items():
            click.echo(f"{name:>7}  {clean(str(value))}")
        return Exit.SUCCESS

    return _with_store(act, state=state)


@cache.command("rm")
@click.argument("group")
@click.argument("keys", nargs=-1, metavar="KEY...")
@click.option("--all", "everything", is_flag=True, help="All entries of the group.")
@options.state
@options.output
def rm(group: str, *, keys: tuple[str, ...], everything: bool, state: Path | None, output: str) -> int:
    """Remove entries of a cache group. A task that wants one makes it anew."""
    from runyard.records.caches import list_caches, remove_cache

    if everything == bool(keys):
        raise InvalidRequest("name the keys to remove, or give --all")

    async def act(store: ObjectStore) -> int:
        wanted = [entry.key for entry in await list_caches(store, group)] if everything else list(keys)
        if everything and not wanted:
            raise _no_group(group)
        for key in wanted:
            await remove_cache(store, group, key)
            if output != "json":
                click.echo(f"removed {clean(key)}")
        if output == "json":
            print_json({"group": group, "removed": wanted})
        return Exit.SUCCESS

    return _with_store(act, state=state)


def size(value: int) -> str:
    """Bytes for people: `512 B`, `1.5 KiB`, `3.0 GiB`."""
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{value} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _no_group(group: str) -> NotFound:
    return NotFound(f"there is no cache group {group!r}", remedy="`runyard cache list` shows them.")


def _with_store(act: Callable[[ObjectStore], Awaitable[int]], *, state: Path | None) -> int:
    from runyard.store.open import open_store

    async def go() -> int:
        store = open_store(options.load_settings(state=state))
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(go())
