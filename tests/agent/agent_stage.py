"""A task on a stage: the real script in a real shell beside a real agent, in a folder of its own."""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runyard.agent
from runyard.dialogue import Assignment, Manifest
from runyard.script import Receipt, compile_script, parse_receipt
from runyard.spec.plan import Step, TaskPlan
from runyard.store.base import FolderTarget

SHELLS = [words for words in (["dash"], ["busybox", "ash"], ["bash", "--posix"]) if shutil.which(words[0])] or [
    ["sh"]
]  # what `sh` is in the images that there are


class Stage:
    """One attempt of one task. ``play`` sees it through; ``start_main`` and ``start_agent`` take it apart."""

    def __init__(self, folder: Path, shell: list[str], python: str) -> None:
        self.folder, self.shell, self.python = folder, shell, python
        self.dir, self.home, self.store = folder / "dir", folder / "home", folder / "store"
        self.cwd = self.home / "project"
        for path in (self.dir, self.home):
            path.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.agent_as: int | None = None  # the uid and gid of each, where not ours
        self.main_as: int | None = None

    def prepare(self, *steps: Step, task: Mapping[str, Any] | None = None, **assignment: Any) -> TaskPlan:
        plan = TaskPlan(id="id", name="stage", containers=[], steps=list(steps), **(task or {}))
        (self.folder / "script").write_text(compile_script(plan), encoding="utf-8", newline="")
        asked = {"logs": FolderTarget(folder=str(self.store)), **assignment}
        words = Assignment(run_id="run", task="stage", attempt=1, steps=list(steps), **asked)
        (self.folder / "assignment.json").write_text(words.model_dump_json())
        return plan

    def start_agent(self, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        words = [self.python, "-I", "-S", compiled_agent(self.python)]
        places = {"RUNYARD_DIR": str(self.dir), "RUNYARD_ASSIGNMENT": str(self.folder / "assignment.json")}
        environ = {**_base(), "HOME": str(self.home), **(environ or {}), **places}
        return self._start(words, environ, "agent.log", user=self.agent_as)

    def start_main(self, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        words = [*self.shell, str(self.folder / "script")]
        places = {"RUNYARD_DIR": str(self.dir), "RUNYARD_RECEIPT": str(self.folder / "receipt")}
        environ = {**_base(), "HOME": str(self.home), **places, **(environ or {})}
        return self._start(words, environ, "main.log", user=self.main_as)

    def _start(
        self, words: list[str], environ: dict[str, str], log: str, *, user: int | None = None
    ) -> subprocess.Popen[bytes]:
        other = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        with open(self.folder / log, "ab") as output:
            process = subprocess.Popen(
                words, env=environ, cwd=self.folder, stdout=output, stderr=output, start_new_session=True, **other
            )
        self.processes.append(process)
        return process

    def play(self, *steps: Step, environ: Mapping[str, str] | None = None, **more: Any) -> int:
        """Main's exit code, once both have ended."""
        secrets = more.pop("secrets", {})
        self.prepare(*steps, **more)
        agent = self.start_agent(secrets)
        main = self.start_main(environ)
        code = main.wait(60)
        assert agent.wait(60) == 0, self.words("agent.log")
        return code

    def words(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def receipt(self) -> Receipt:
        return parse_receipt(self.words("receipt"))

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.store / "manifest.json").read_bytes())

    def log(self, step: int) -> bytes:
        """The step's log, put together; its segments must join without a gap."""
        data = b""
        for segment in sorted((self.store / "segments" / str(step)).glob("*")):
            assert int(segment.name) == len(data)
            data += segment.read_bytes()
        return data

    def end(self) -> None:
        for process in self.processes:
            for sign in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    break
            process.wait(10)
        for pid in below(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def below(folder: Path) -> dict[int, str]:
    """Living processes that have ``folder`` in their command line or work in it; by /proc, so on Linux only."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = os.readlink(process / "cwd")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and (str(folder) in line or place.startswith(str(folder))):
            found[int(process.name)] = line
    return found


@functools.cache
def compiled_agent(python: str) -> str:
    """The agent as that Python's byte code: compiling it takes longer than most of these tasks."""
    path = Path(tempfile.mkdtemp(prefix="runyard-agent-")) / "agent.pyc"
    path.parent.chmod(0o755)  # agents of other users read it too
    program = "import py_compile, sys; py_compile.compile(sys.argv[1], cfile=sys.argv[2], doraise=True)"
    subprocess.run([python, "-I", "-c", program, runyard.agent.__file__, str(path)], check=True)
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    return str(path)


def _base() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def old_python() -> str | None:
    """A Python 3.9, the oldest that the agent promises."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [*sorted(root.glob("versions/3.9.*/bin/python3.9")), *filter(None, [shutil.which("python3.9")])]
    for python in map(str, found):
        if subprocess.run([python, "-c", "pass"], capture_output=True).returncode == 0:
            return python
    return None
