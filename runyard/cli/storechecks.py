"""What `doctor` tries on the store: all that runs do with it, with objects of its own, which it removes again."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from runyard.cli.checks import Check
from runyard.errors import Conflict, RunyardError, StoreError

if TYPE_CHECKING:
    from runyard.settings import Settings
    from runyard.store.base import ObjectStore, UrlTarget
    from runyard.store.s3.store import S3Store

_SKEW_S = 60
_DATA = b"runyard doctor"


async def store(settings: "Settings") -> AsyncIterator[Check]:
    """Write, read, list, delete; write only if absent; of a bucket also its links and its clock."""
    from runyard.store.open import open_store

    try:
        opened = open_store(settings)
    except RunyardError as error:
        yield Check("store", "wrong", f"cannot open: {error.message}", error.remedy)
        return
    key = f"doctor/{secrets.token_hex(8)}"
    try:
        objects = await _objects(opened, key, _place(settings))
        yield objects
        if objects.state == "ok":
            yield await _condition(opened, key)
            if settings.store == "s3":
                async for check in _bucket(opened, key):
                    yield check
    finally:
        await opened.close()


def _place(settings: "Settings") -> str:
    if settings.store != "s3":
        return str(settings.posix_folder)
    address = settings.s3_endpoint or "AWS"
    return f"bucket {settings.s3_bucket} at {address}" + (
        f", below {settings.s3_prefix}" if settings.s3_prefix else ""
    )


async def _objects(opened: "ObjectStore", key: str, place: str) -> Check:
    from runyard.store.base import read

    doing = "write"
    try:
        await opened.put(key, _DATA)
        doing = "read"
        if await read(opened, key) != _DATA or await read(opened, key, offset=8, length=3) != _DATA[8:11]:
            return Check("store", "wrong", "what was written is not what is read", "Do not use this store.")
        doing = "list"
        if [info.key async for info in opened.list(key)] != [key]:
            return Check("store", "wrong", "what was written is not listed", "Do not use this store.")
        doing = "delete"
        await opened.delete(key)
    except RunyardError as error:
        return Check("store", "wrong", f"cannot {doing}: {error.message}", error.remedy)
    return Check("store", "ok", f"{place}: write, read, list, delete")


async def _condition(opened: "ObjectStore", key: str) -> Check:
    """Whether the second of two that write "only if absent" is refused: at-most-once rests on it."""
    name = "store, first wins"
    try:
        await opened.put(key, _DATA, if_absent=True)
        with suppress(Conflict):
            await opened.put(key, b"", if_absent=True)
            return Check(
                name,
                "wrong",
                "the store overwrites what is to be written only if absent (If-None-Match)",
                "Use a store that heeds it: MinIO of 2024-09 or later, S3. Without it a step might run twice.",
            )
        await opened.delete(key)
    except RunyardError as error:
        return Check(name, "wrong", error.message, error.remedy)
    return Check(name, "ok", "the second of two writers is refused")


async def _bucket(opened: "ObjectStore", key: str) -> AsyncIterator[Check]:
    from runyard.store.s3.store import S3Store

    assert isinstance(opened, S3Store)
    yield await _clock(opened)
    yield await _links(opened, f"{key}/")


async def _clock(opened: "S3Store") -> Check:
    name = "store, clock"
    try:
        skew_s = await opened.clock_skew_s()
    except RunyardError as error:
        return Check(name, "wrong", error.message, error.remedy)
    if abs(skew_s) <= _SKEW_S:
        return Check(name, "ok", "agrees with this machine's to a minute")
    said = f"this machine's clock is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the store's"
    return Check(name, "warning", said, "Set it by NTP: links may end early, and at 15 minutes all is refused.")


async def _links(opened: "S3Store", prefix: str) -> Check:
    """What a task does with its links: a POST, the PUT of its claim, twice, and a GET."""
    name, where = "store, links", opened.place.public_endpoint
    try:
        target = opened.target(prefix, expires_s=60)
        source = opened.source(f"{prefix}probe", expires_s=60)
        said = await asyncio.to_thread(_follow, opened, target, source)
        for each in ("probe", "started"):
            await opened.delete(f"{prefix}{each}")
    except StoreError as error:
        return Check(name, "wrong", error.message, error.remedy)
    except OSError as error:
        remedy = "Tasks must reach RUNYARD_S3_PUBLIC_ENDPOINT (else RUNYARD_S3_ENDPOINT); this machine need not."
        elsewhere = where != opened.place.endpoint
        return Check(name, "warning" if elsewhere else "wrong", f"{where} does not answer: {error}", remedy)
    if said:
        remedy = "Is a proxy in between that changes the host's name, or drops headers? The name is signed."
        return Check(name, "wrong", f"{where}: {said}", remedy)
    return Check(name, "ok", f"{where}: post, claim once, get")


def _follow(opened: "S3Store", target: "UrlTarget", source: str) -> str:
    """Blocking, in a thread; what went wrong, in words, or nothing. Raises OSError where nobody answers."""
    import urllib3

    from runyard.store.s3.bucket import open_http

    with open_http(opened.place, connections=1) as http:
        try:
            form: dict[str, str | bytes | tuple[str, str | bytes] | tuple[str, str | bytes, str]] = {
                **target.fields,
                "key": f"{target.prefix}probe",
                "file": ("data", _DATA),
            }
            posted = http.request("POST", target.url, fields=form)
            if posted.status not in (200, 201, 204):
                return f"a POST by policy is answered {posted.status}"
            for expected in (200, 412):
                put = http.request("PUT", target.claim, body=b"{}", headers={"If-None-Match": "*"})
                if put.status != expected:
                    return f"the PUT of a claim is answered {put.status}, not {expected}"
            got = http.request("GET", source)
            if got.status != 200 or got.data != _DATA:
                return f"a GET is answered {got.status} with {len(got.data)} bytes"
        except urllib3.exceptions.HTTPError as error:
            raise OSError(str(error)[:200]) from error
    return ""
