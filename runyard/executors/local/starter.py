"""How a nest comes to be: what it is given, and how it is started."""

import asyncio
import contextlib
import marshal
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import runyard
from runyard.errors import StartError
from runyard.executors.base import Launch, Secrets
from runyard.executors.local import surroundings
from runyard.executors.local.folder import Facts
from runyard.executors.local.nest import TIE
from runyard.executors.local.request import Request
from runyard.spec.plan import FromSecret

MARK = "RUNYARD_PROCESS"  # in the environment of all of a pod: its uid, with `.main` for main and its steps
AGENT = Path(runyard.__file__).with_name("agent.py")

_POD = "RUNYARD_POD"  # tells main that it is alone in a container and may signal all it sees: never here
_ROOT = Path(runyard.__file__).parent.parent
_START = (
    "import sys; sys.path.append(sys.argv[1]); from runyard.executors.local.nest import main; main(*sys.argv[2:])"
)


class Starter:
    """Starts nests. ``environ`` is what tasks inherit from; ``more`` names what else they get of it.

    Nests that are ``tied`` hold one end of a pipe, and this process alone the other: however it ends, they know.
    """

    def __init__(
        self,
        tasks: Path,
        *,
        secrets: Secrets,
        environ: Mapping[str, str],
        more: Sequence[str],
        agent: Path,
        tied: bool,
    ) -> None:
        self._tasks = tasks
        self._secrets = secrets
        self._agent = agent
        self._tie, self._held = os.pipe() if tied else (-1, -1)  # its end of file is our own
        self._main_base = surroundings.base_environment(environ, more)
        self._agent_base = surroundings.agent_environment(environ, more)

    def values(self, launch: Launch) -> dict[str, str]:
        """The task's own variables, secrets in place. Raises ConfigError, and StartError for what none can be."""
        values = {
            name: self._secrets.get(value.from_secret) if isinstance(value, FromSecret) else value
            for name, value in launch.environment.items()
        }
        values.update((name, self._secrets.get(secret)) for name, secret in launch.secrets.items())
        for name, value in values.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise StartError(f"the variable {name!r} cannot be set: it has a `=` or NUL character")
        return values

    def start(self, facts: Facts, launch: Launch, values: dict[str, str]) -> tuple[int, asyncio.Event]:
        """Its pid, and an event: it has taken the pod or gone away, since another one has or it failed."""
        path = self._tasks / launch.name
        taken = asyncio.Event()
        with contextlib.ExitStack() as opened:
            request = opened.enter_context(_nameless_file(self._tasks))
            request.write(marshal.dumps(dict(self._request(path, facts, launch, values))))
            request.seek(0)
            log = opened.enter_context(open(path / "nest.log", "ab"))
            ear, mouth = os.pipe()
            opened.callback(os.close, mouth)
            _when_closed(ear, taken)
            arguments = [sys.executable, "-I", "-S", "-c", _START, str(_ROOT), str(path), facts.uid]
            standard = {0: request.fileno(), 1: mouth, 2: log.fileno()}
            if self._tie >= 0:
                standard[TIE] = self._tie
            try:
                pid = _spawn(arguments, {"PATH": os.defpath, MARK: facts.uid}, standard)
            except OSError as error:
                raise StartError(f"the supervisor of the task cannot be started: {error}") from error
        return pid, taken

    def _request(self, path: Path, facts: Facts, launch: Launch, values: dict[str, str]) -> Request:
        common = {
            **{name: value for name, value in values.items() if name != _POD},
            "RUNYARD_DIR": str(path / "runyard"),
        }
        return Request(
            uid=facts.uid,
            script=str(path / "script"),
            agent=str(self._agent),
            working_dir="home",
            runyard_dir="runyard",
            receipt="receipt",
            main_environment={
                **self._main_base,
                "HOME": str(path / "home"),
                "CI": "true",
                **common,
                MARK: f"{facts.uid}.main",
                "RUNYARD_RECEIPT": str(path / "receipt"),
                "RUNYARD_GRACE_S": str(max(1, int(0.8 * launch.grace_s))),
            },
            agent_environment={
                **self._agent_base,
                **common,
                MARK: facts.uid,
                "RUNYARD_ASSIGNMENT": str(path / "assignment.json"),
            },
            deadline_s=launch.deadline_s,
            grace_s=launch.grace_s,
            memory_bytes=launch.task.resources.memory_bytes,
            cores=surroundings.cores(launch.task),
            tied=self._tie >= 0,
        )

    def close(self) -> None:
        """What is tied to us ends with us, in order or not."""
        for end in (self._tie, self._held):
            if end >= 0:
                os.close(end)
        self._tie = self._held = -1


def _nameless_file(beside: Path) -> IO[bytes]:
    """For a request with secrets in it: in memory where the system can, else without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("request"), "w+b", buffering=0)
    return tempfile.TemporaryFile(dir=beside, buffering=0)


def _when_closed(ear: int, event: asyncio.Event) -> None:
    """Set the event once the other end of the pipe is closed."""
    loop = asyncio.get_running_loop()

    def closed() -> None:
        loop.remove_reader(ear)
        os.close(ear)
        event.set()

    loop.add_reader(ear, closed)


def _spawn(arguments: list[str], environment: dict[str, str], standard: dict[int, int]) -> int:
    """A new process in a session of its own; where the system cannot, the nest makes one itself."""
    actions = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in standard.items()]
    try:
        return os.posix_spawn(arguments[0], arguments, environment, file_actions=actions, setsid=True)
    except NotImplementedError:
        return os.posix_spawn(arguments[0], arguments, environment, file_actions=actions)
