"""A secret's value is in its step and nowhere else: not in logs, arguments, history, store or errors."""

import base64
import os
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from bad_scene import at_work, end, everything_below, file, play, task, until
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from yard import Yard

from runyard.reasons import Reason
from runyard.settings import Settings
from runyard.temporal import Converter

PASSWORD = "hunter2/+? & pass word ü"
KEY = "-----BEGIN KEY-----\nMIIEowIBAAKC\nqzH0Xk2vX8w\n-----END KEY-----\n"
PIECES = [b"hunter2", b"MIIEowIBAAKC", b"qzH0Xk2vX8w"]
SPELLED = [
    *PIECES,
    *(base64.b64encode(text.encode()) for text in (PASSWORD, KEY)),
    *(urllib.parse.quote(text, safe="").encode() for text in (PASSWORD, KEY)),
]
SECRETS: dict[str, object] = {"PASSWORD": {"from_secret": "password"}, "KEY": {"from_secret": "key"}}


@pytest_asyncio.fixture
async def yard(client: Client, tmp_path: Path) -> AsyncIterator[Yard]:
    """A worker with a file of secrets."""
    secrets = tmp_path / "secrets.env"
    secrets.touch(mode=0o600)
    secrets.write_text(f"password='{PASSWORD}'\nkey=\"{KEY}\"\nempty=\nother=never-asked-for\n")
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", secrets_file=secrets)
    async with at_work(client, settings) as ready:
        yield ready


async def history_of(yard: Yard, run_id: str) -> bytes:
    """All that Temporal keeps of a run: its events, memo and search attributes, payloads unpacked."""
    handle = yard.client.get_workflow_handle(run_id)
    described = (await handle.describe()).raw_description
    events = [event async for event in handle.fetch_history_events()]
    return b"\n".join(map(_unpacked, [described, *events]))


def _unpacked(message: object) -> bytes:
    """The message's bytes, and those of every payload in it that is compressed."""
    found = [message.SerializeToString()]  # type: ignore[attr-defined]
    waiting = [message]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Payload):
            found.append(Converter()._unpack(each).data)
            continue
        for field, value in each.ListFields():  # type: ignore[attr-defined]
            if field.type != field.TYPE_MESSAGE:
                continue
            if field.message_type.GetOptions().map_entry:
                waiting += [one for one in value.values() if hasattr(one, "ListFields")]
            else:
                waiting += [value] if hasattr(value, "ListFields") else list(value)
    return b"\n".join(found)


def arguments_of_all_processes() -> bytes:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


SHOW = """
[ "$PASSWORD" = "$(cat EXPECTED)" ] || exit 9
echo "password: $PASSWORD"
echo "$KEY"
printf %s "$PASSWORD" | head -c 9
while [ ! -e GATE ]; do sleep 0.05; done
printf %s "$PASSWORD" | tail -c +10; echo
printf %s "$PASSWORD" | base64
printf 'x%s' "$PASSWORD" | base64
printf %s "$KEY" | base64 -w 0; echo
echo "https://user:QUOTED@example.org/?a=QUOTED"
echo "PASSWORD=$PASSWORD" >>"$RUNYARD_OUTPUT"
set -x
: "$PASSWORD"
echo "$PASSWORD" >&2
exit 5
"""


@pytest.mark.promise(4)
async def test_a_secret_is_seen_by_its_step_and_by_nobody_else(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "expected").write_text(PASSWORD)
    command = (
        SHOW.replace("EXPECTED", str(tmp_path / "expected"))
        .replace("GATE", str(tmp_path / "gate"))
        .replace("QUOTED", "%s")
        .replace('echo "https', 'printf "https')
        .replace('a=%s"', 'a=%s\\n" $(cat ' + str(tmp_path / "quoted") + ")")
    )
    quoted = urllib.parse.quote(PASSWORD, safe="")
    (tmp_path / "quoted").write_text(f"{quoted} {quoted}")
    other = 'echo "[${PASSWORD:-unset}] [${KEY:-unset}]"; env'
    step = {"run": {"command": command, "environment": SECRETS}}
    task_secret = task("whole", 'echo "$TOKEN"', environment={"TOKEN": {"from_secret": "password"}})
    handle = await yard.start(file(task("t", other, step), task_secret))
    await until(
        lambda: b"password: " in everything_below(tmp_path / "store" / "data" / "logs"), "the step to begin"
    )
    arguments = arguments_of_all_processes()
    (tmp_path / "gate").touch()
    played = await end(yard, handle)

    assert (played["t"].reason, played["t"].exit_code) == (Reason.EXIT_CODE, 5)
    log = await played.log("t", 1)
    assert log.startswith(b"password: ***\n")
    assert b"\n***\n***\n" in log
    assert b"https://user:***@example.org/?a=***\n" in log
    assert b"[unset] [unset]" in await played.log("t", 0)
    assert await played.log("whole") == b"***\n"
    places = {
        "arguments": arguments,
        "history": await history_of(yard, handle.id),
        "store": everything_below(tmp_path / "store"),
        "view": played.view.model_dump_json().encode(),
        "cause": played.cause.encode(),
        "tasks": everything_below(tmp_path / "state"),
    }
    assert {(where, piece) for where, text in places.items() for piece in SPELLED if piece in text} == set()
    assert not any(b"never-asked-for" in text for text in places.values())


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no secret 'nowhere'"), ("empty", "'empty' is empty")])
@pytest.mark.parametrize("of", ["task", "step"])
async def test_a_secret_that_is_not_there_fails_its_task_before_a_step_runs(
    yard: Yard, tmp_path: Path, name: str, words: str, of: str
) -> None:
    environment = {"TOKEN": {"from_secret": name}, "PASSWORD": {"from_secret": "password"}}
    bad = (
        task("bad", "echo never", environment=environment)
        if of == "task"
        else task("bad", "echo never", {"run": {"command": "echo never", "environment": environment}})
    )
    played = await play(yard, bad, task("good", "echo fine"))
    view = played["bad"]
    assert (view.status, view.reason, view.attempt) == ("failed", Reason.CONFIG_ERROR, 1)
    assert words in view.message
    assert str(tmp_path / "secrets.env") in view.message
    setup = (await played.log("bad", "setup")).decode()
    assert words in setup
    assert Reason.CONFIG_ERROR.remedy.split(",")[0] in setup or "Create it where the worker runs" in setup
    assert played["good"].status == "success"
    assert "1 of 2 tasks failed: bad" in played.cause
    assert b"never" not in everything_below(tmp_path / "store" / "data" / "logs")
    for text in (played.cause, played.view.model_dump_json(), setup):
        assert "hunter2" not in text


async def test_a_file_of_secrets_that_others_may_read(yard: Yard, tmp_path: Path) -> None:
    os.chmod(tmp_path / "secrets.env", 0o644)
    played = await play(yard, task("t", "echo never", environment={"P": {"from_secret": "password"}}))
    assert played["t"].reason is Reason.CONFIG_ERROR
    assert "may be read by others (mode 0644)" in played["t"].message
    assert "chmod 600" in (await played.log("t", "setup")).decode()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 4096, 65536])
@pytest.mark.promise(4)
async def test_a_secret_across_every_border(yard: Yard, size: int) -> None:
    """Written in pieces of this size after enough to cross the borders of reads and segments."""
    command = f"""
    [ {size} -lt 10 ] || head -c $((65536 - 5)) /dev/zero
    printf '%s' "$PASSWORD" >value
    dd if=value bs={size} 2>/dev/null
    """
    step = {"run": {"command": command, "environment": SECRETS}}
    played = await play(yard, task("t", step))
    log = await played.log("t")
    assert log.lstrip(b"\0") == b"***"
