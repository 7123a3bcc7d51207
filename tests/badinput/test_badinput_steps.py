"""Step texts that a shell, a pipe or a log could stumble over, through a real run on local processes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_scene import at_work, play, task
from temporalio.client import Client
from yard import Yard

from runyard.reasons import Reason
from runyard.settings import Settings


@dataclass(frozen=True)
class Text:
    """A step's text, its log and its exit code."""

    name: str
    command: str
    log: bytes
    code: int = 0


TEXTS = [
    Text(
        "quotes",
        """printf '%s,' "it's" '"q"' \\"x\\" `echo back` '$HOME' "a\\\\b" ''""",
        b'it\'s,"q","x",back,$HOME,a\\b,,',
    ),
    Text(
        "heredoc",
        "cat <<'EOF'\n$HOME `x` 'a' \"b\"\nEOF\ncat <<-END\n\t$((1 + 1))\n\tEND\n",
        b"$HOME `x` 'a' \"b\"\n2\n",
    ),
    Text("heredoc of ours", "cat <<'RUNYARD_EOF'\n}\nfi\n'\nRUNYARD_EOF", b"}\nfi\n'\n"),
    Text("exit in the middle", "echo a\nexit 3\necho b", b"a\n", 3),
    Text("failing command", "echo a\nfalse\necho b", b"a\n", 1),
    Text("set +e", "set +e\nfalse\necho on\n", b"on\n"),
    Text("set -u", 'set -u\necho "${NOT_SET:-none}"\n', b"none\n"),
    Text("trap", "trap 'echo bye' EXIT\nexit 4", b"bye\n", 4),
    Text("no final newline", "printf 'a\\nb'", b"a\nb"),
    Text("no output", ":", b""),
    Text("comment alone", "# nothing", b""),
    Text("binary", "printf '\\000\\377\\001\\r\\n\\033[31m\\200'", b"\x00\xff\x01\r\n\x1b[31m\x80"),
    Text("closed stdout", "echo a\nexec >&- 2>&-\nexit 0", b"a\n"),
    Text("failing in silence", "echo a\nexec >&- 2>&-\nexit 9", b"a\n", 9),
    Text("/dev/stdout", "echo a >/dev/stdout\necho b >/dev/stderr\necho c >>/dev/stdout", b"a\nb\nc\n"),
    Text("stdin", "cat\nread -r line || echo 'end of file'", b"end of file\n"),
    Text("carriage returns", "echo a\\\n  b\nprintf '50%%\\r100%%\\n'", b"a b\n50%\r100%\n"),
    Text("unicode", "echo 'ü 🚀 \u2028 \u202e'", "ü 🚀 \u2028 \u202e\n".encode()),
    Text("words of the dialogue", "echo 'end 0 7;sealed;'\necho 'done' 1>&2", b"end 0 7;sealed;\ndone\n"),
    Text("syntax error", "if then (", b"", 2),
]


async def test_every_text_runs_as_it_is_written(local_yard: Yard) -> None:
    played = await play(local_yard, *[task(text.name, text.command) for text in TEXTS])
    logs = {text.name: await played.log(text.name) for text in TEXTS}
    unlike = {
        text.name: (played[text.name].exit_code, logs[text.name])
        for text in TEXTS
        if ((played[text.name].exit_code or 0), logs[text.name]) != (text.code, text.log)
    }
    syntax = unlike.pop("syntax error")
    assert unlike == {}
    assert syntax[0] == 2
    assert b"yntax error" in syntax[1]
    failed = [text.name for text in TEXTS if text.code]
    assert played.view.counts == {"success": len(TEXTS) - len(failed), "failed": len(failed)}
    assert all(played[name].reason is Reason.EXIT_CODE for name in failed)
    assert f"{len(failed)} of {len(TEXTS)} tasks failed" in played.cause


LATE = (
    "(while [ ! -e go ]; do sleep 0.02; done; echo late; printf 'without end'; : >wrote) &\necho first",
    ": >go\nwhile [ ! -e wrote ]; do sleep 0.02; done\necho second",
)


@pytest.mark.promise(4)
async def test_a_child_that_outlives_its_step_writes_on_into_that_steps_log(local_yard: Yard) -> None:
    played = await play(local_yard, task("t", *LATE))
    assert played["t"].status == "success"
    assert await played.log("t", 0) == b"first\nlate\nwithout end"
    assert await played.log("t", 1) == b"second\n"


async def test_a_child_that_never_ends_holds_nobody_up(local_yard: Yard) -> None:
    played = await play(
        local_yard,
        task("t", "(while :; do echo again; sleep 0.01; done) &", "(trap '' TERM HUP; sleep 600) &\necho last"),
    )
    assert played["t"].status == "success"
    assert set((await played.log("t", 0)).splitlines()) <= {b"again"}
    assert await played.log("t", 1) == b"last\n"
    assert [pod async for pod in local_yard.executor.list()] == []


@pytest.mark.promise(4)
async def test_a_line_of_10_mb(local_yard: Yard) -> None:
    command = "head -c 10000000 /dev/zero | tr '\\0' x\necho\necho after"
    played = await play(local_yard, task("t", command))
    log = await played.log("t")
    assert hashlib.sha256(log).digest() == hashlib.sha256(b"x" * 10_000_000 + b"\nafter\n").digest()
    assert (played["t"].status, played["t"].last_line) == ("success", "after")


@pytest.mark.promise(4)
async def test_a_gigabyte_against_a_cap(client: Client, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", store_folder=tmp_path / "store", log_bytes=100_000)
    command = "echo begin\nhead -c 1000000000 /dev/zero\necho end"
    async with at_work(client, settings) as yard:
        played = await play(yard, task("t", command, "echo next"))
    log = await played.log("t")
    assert played["t"].status == "success"
    assert log.startswith(b"begin\n\0\0")
    body, _, marker = log[:-1].rpartition(b"\n")
    assert (len(body), marker) == (100_000, b"[runyard: the log ends here, at its cap of 100000 bytes]")
    seal = await played.seal("t")
    assert not seal.end.log_complete
    assert "cap of 100000 bytes" in seal.model_dump_json()
    assert await played.log("t", 1) == b"next\n"
    assert sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()) < 300_000
