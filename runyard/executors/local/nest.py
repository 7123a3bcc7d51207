"""The supervisor of one pod: what the kubelet is to a pod, this process is to a task of this machine.

It is a process and not a thread of the worker, because a task must go on, and its timeout, grace period and
exit code must hold, when no worker is alive. It is not a daemon that serves all tasks, since that would be
one more thing to start, to guard and to update; one nest a task dies with its task. Standard library only,
nothing heavy imported before main runs: it is started at every task (`python -I -S`).

What it reads from its standard input is a marshalled `Request`: so neither the command line nor a file ever
holds a secret, and marshal costs no import. What it leaves in the pod's folder, each written whole:

    nest.json     its pid and the moment it began: by this file, which only one process can make, it takes
                  the pod. A second nest of the pod finds it and goes away.
    status.json   how main ended; written at once, and again with ``swept`` when no process is left

Signals: TERM = end main with the grace period of stop.json (else the request's), USR1 = kill all now.
"""

from __future__ import annotations  # and so nothing of typing is imported, which would cost 8 ms

import marshal
import os
import select
import signal
import sys
import time

from runyard.executors.local.nest_files import STOP, claim, granted_s, read, remove_fifos, write_status
from runyard.executors.local.process import LINUX, Row, below, proportional_bytes, suppress, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import NoReturn

    from runyard.executors.local.request import Request

_SETTLE_S = 330.0  # how long the agent may take to store the rest after main's end; it gives up before
_LAST_WORDS_S = 1.0  # how long main may take to end by itself once its agent is gone
_KILL_S = 20.0  # how long killed processes may take to be gone; those that hang in the kernel are left
TIE = 3  # the descriptor whose end of file says that whoever started a tied pod is gone
_LOOK_S = 0.2  # how often the memory is looked at, where it is limited


def main(folder: str, uid: str) -> None:
    """Take the pod in ``folder``, see it through, leave. Ends silently if another nest has taken it."""
    with suppress(PermissionError):  # where the executor could not ask for a session, it is ours to make
        os.setsid()
    os.chdir(folder)
    request: Request = marshal.loads(sys.stdin.buffer.read())
    if request["uid"] != uid:
        return
    nest = Nest(request)
    if not claim(uid, os.getpid()):
        return
    _silence()
    try:
        nest.run()
    except BaseException:
        nest.kill(spare=0)
        raise


class Nest:
    """One pod, from its claim to the last of its processes."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._wake, self._waker = os.pipe()
        for end in (self._wake, self._waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._tie = TIE if request["tied"] else -1
        if request["tied"]:
            os.set_inheritable(TIE, False)
        self._asked = False
        self._forced = False
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, self._on_kill)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._main = 0
        self._agent = 0
        self._ends: dict[int, int] = {}  # pid → wait status, of main and agent
        self._trouble = -1  # pipe on which main's child says why it could not become main
        self._reason = ""
        self._message = ""
        self._kill_at: float | None = None  # when the grace period is over
        self._over_memory = False
        self._started_at: float | None = None
        self._agent_first = False  # the agent ended before main did
        self._subreaper = False

    def run(self) -> None:
        if os.path.exists(STOP):
            self._end(reason="cancelled", message="it was stopped before it began")
            return
        self._started_at = time.time()
        self._begin()
        deadline_s = self._request["deadline_s"]
        self._watch(None if deadline_s is None else time.monotonic() + deadline_s)
        self._end()

    def _begin(self) -> None:
        """Main first: its shell starts while the agent imports what it needs, and then waits for the agent."""
        self._trouble, trouble_write = os.pipe()
        self._main = os.fork()
        if not self._main:
            self._become_main(trouble_write)
        os.close(trouble_write)
        gate, gate_write = os.pipe()
        self._agent = os.fork()
        if not self._agent:
            os.close(gate_write)
            self._become_agent(gate)
        os.close(gate)
        self._subreaper = _become_subreaper()
        os.close(gate_write)  # no step runs before the agent answers: none can leave a child that escapes us

    def _become_main(self, trouble: int) -> NoReturn:
        try:
            _fresh("main.log")
            if self._request["cores"]:
                os.sched_setaffinity(0, self._request["cores"])
            os.chdir(self._request["working_dir"])
            script = self._request["script"]
            os.execve("/bin/sh", ["/bin/sh", script], self._request["main_environment"])
        except BaseException as error:
            os.write(trouble, str(error).encode())
        os._exit(126)

    def _become_agent(self, gate: int) -> NoReturn:
        code = 70
        try:
            for end in (self._wake, self._waker, self._trouble):
                os.close(end)
            _fresh("agent.log")
            os.environ.clear()
            os.environ.update(self._request["agent_environment"])
            agent = _load(self._request["agent"])
            os.read(gate, 1)
            code = agent(os.environ)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    # While main runs

    def _watch(self, deadline: float | None) -> None:
        agent_gone_at: float | None = None
        while not self._reap(self._main):
            now = time.monotonic()
            if self._forced:
                self.kill(spare=0)
            elif self._kill_at is not None and now >= self._kill_at:
                self.kill(spare=self._agent)
            elif self._asked:
                self._asked = False
                self._ask("cancelled", "it was asked to end", granted_s(self._request["grace_s"]))
            elif deadline is not None and now >= deadline:
                deadline = None
                self._ask(
                    "timeout_run",
                    f"it ran longer than {self._request['deadline_s']:g} s",
                    self._request["grace_s"],
                )
            elif agent_gone_at is None and self._agent in self._ends:
                agent_gone_at = now
            elif agent_gone_at is not None and now >= agent_gone_at + _LAST_WORDS_S and self._kill_at is None:
                self._ask("agent_lost", self._agent_words(), self._request["grace_s"])
            self._hold_memory()
            last_words = (
                agent_gone_at + _LAST_WORDS_S if agent_gone_at is not None and self._kill_at is None else None
            )
            self._sleep(deadline, self._kill_at, last_words)

    def _ask(self, reason: str, message: str, grace_s: float) -> None:
        """Ask main to end. The first reason is the one that counts, the shortest grace period too."""
        self._reason = self._reason or reason
        self._message = self._message or message
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        with suppress(ProcessLookupError):
            os.kill(self._main, signal.SIGTERM)

    def _sleep(self, *until: float | None) -> None:
        """Until a signal comes (a child's end is one) or the first of these moments."""
        if self._forced or self._asked or self._main in self._ends:
            return
        times = [moment for moment in until if moment is not None]
        if self._request["memory_bytes"]:
            times.append(time.monotonic() + _LOOK_S)
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        if timeout == 0.0 and self._kill_at is not None:
            timeout = 0.02  # killed already: give the kernel a moment
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> None:
        ready = select.select([self._wake, self._tie] if self._tie >= 0 else [self._wake], [], [], timeout)[0]
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self._tie in ready:  # nothing is ever written to it: this is its end
            self._tie = -1
            self._asked = True

    def _hold_memory(self) -> None:
        """End the largest process of a task that is over its limit, as the kernel does in a container."""
        limit = self._request["memory_bytes"]
        if not limit:
            return
        rows = below(os.getpid(), table(), spare=self._agent)
        if sum(row.rss_bytes for row in rows) <= limit:
            return
        exact = [(proportional_bytes(row.pid) or row.rss_bytes, row.pid) for row in rows]
        if sum(size for size, _ in exact) > limit:
            self._over_memory = True
            self._message = self._message or f"it used more than {limit} bytes of memory"
            with suppress(ProcessLookupError):
                os.kill(max(exact)[1], signal.SIGKILL)

    # After main

    def _end(self, *, reason: str = "", message: str = "") -> None:
        status = self._verdict()
        status["reason"] = status["reason"] or reason
        status["message"] = status["message"] or message
        write_status(status, swept=False)
        if self._main:
            self.kill(spare=self._agent)
            self._settle()
            self.kill(spare=0)
        remove_fifos(self._request["runyard_dir"])
        write_status(status, swept=self._subreaper or not self._main)

    def _verdict(self) -> dict[str, object]:
        wait_status = self._ends.get(self._main)
        receipt = read(self._request["receipt"])
        code = None if wait_status is None else os.waitstatus_to_exitcode(wait_status)
        number = -code if code is not None and code < 0 else None
        exit_code = 128 + number if number is not None else code
        reason, message = self._reason, self._message
        trouble = self._trouble_text()
        if trouble:
            reason, message = "start_error", trouble
        elif exit_code == 0:
            reason = message = ""
        elif self._over_memory:
            reason = "oom_killed"
        elif not reason and "sealed" not in receipt and (self._agent_first or "agent lost" in receipt):
            reason, message = "agent_lost", self._agent_words()
        return {
            "exit_code": exit_code,
            "signal": number,
            "reason": reason,
            "message": message,
            "receipt": receipt,
            "started_at": self._started_at,
            "ended_at": time.time(),
        }

    def _settle(self) -> None:
        """Let the agent store the rest: main's end is the end of file that it waits for."""
        until = time.monotonic() + _SETTLE_S
        told = False
        while not self._reap(self._agent) and not self._forced and time.monotonic() < until:
            if self._asked or (self._reason == "cancelled" and self._kill_at is not None):
                # A cancel ends in its time, with the store away too; but a second or two are always for the log.
                grace_s = max(_LAST_WORDS_S, granted_s(self._request["grace_s"]))
                until = min(until, time.monotonic() + grace_s)
                self._asked, self._kill_at = False, None
            told = told or self._tell_end()
            self._wait(max(0.0, until - time.monotonic()) if told else 0.05)

    def _tell_end(self) -> bool:
        """End of file for an agent whose main died before it ever opened its FIFO; no harm to any other."""
        try:
            os.close(os.open(f"{self._request['runyard_dir']}/req", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # the agent has not opened it yet
            return False
        return True

    def _trouble_text(self) -> str:
        return os.read(self._trouble, 4096).decode(errors="replace") if self._trouble >= 0 else ""

    def _agent_words(self) -> str:
        until = time.monotonic() + _LAST_WORDS_S
        while not self._reap(self._agent) and time.monotonic() < until:
            time.sleep(0.002)  # main saw its pipe close: its end is not far
        if self._agent not in self._ends:
            return "the agent does not answer"
        code = os.waitstatus_to_exitcode(self._ends[self._agent])
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = read("agent.log").strip()[-1000:]
        return f"the agent ended with {how}" + (f": {last}" if last else "")

    # Processes

    def kill(self, *, spare: int) -> None:
        """Kill all that descends from main, and what joined its group, but not the agent if it is spared."""
        until = time.monotonic() + _KILL_S
        while not self._alone(spare) and time.monotonic() < until:
            rows = [row for row in self._rows(spare) if not row.zombie]
            for row in rows:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(row.pid, signal.SIGKILL)
            if not rows:
                return
            select.select([], [], [], 0.002)

    def _rows(self, spare: int) -> list[Row]:
        rows = table()
        tree = below(os.getpid(), rows, spare=spare)
        # Orphans come to a subreaper. Elsewhere those that stayed in main's group are found, and the executor
        # looks for the others by their environment.
        seen = {row.pid for row in tree}
        if self._subreaper or not self._main:
            return tree
        return tree + [row for row in rows if row.group == self._main and row.pid not in seen]

    def _alone(self, spare: int) -> bool:
        """Whether surely nothing is left, without a look at the table of processes."""
        self._reap(self._main)
        if not self._subreaper or self._main not in self._ends or (spare and spare not in self._ends):
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def _reap(self, wanted: int) -> bool:
        """Take in every child that has ended; whether ``wanted`` has."""
        ends: dict[int, int] = {}
        with suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                ends[end[0]] = end[1]
        # An agent whose main has died ends in order: of two found dead together, a failed agent was the first.
        if self._agent in ends and self._main not in self._ends:
            self._agent_first = self._main not in ends or ends[self._agent] != 0
        self._ends.update((pid, ends[pid]) for pid in (self._main, self._agent) if pid in ends)
        return wanted in self._ends

    def _on_term(self, *_: object) -> None:
        self._asked = True

    def _on_kill(self, *_: object) -> None:
        self._forced = True


def _load(path: str) -> Callable[[MutableMapping[str, str]], int]:
    import importlib.util  # in the agent's own process only

    spec = importlib.util.spec_from_file_location("agent", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no agent at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = module
    spec.loader.exec_module(module)
    start: Callable[[MutableMapping[str, str]], int] = module.main
    return start


def _fresh(log: str) -> None:
    """A child's beginning: a group of its own, signals as a program expects them, output into ``log``."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGCHLD,
        signal.SIGINT,
        signal.SIGQUIT,  # a worker that a script has put into the background is deaf to it
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):
        signal.signal(number, signal.SIG_DFL)
    end = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(end, 1)
    os.dup2(end, 2)
    os.close(end)


def _silence() -> None:
    """Let go of the worker's pipe: its end of file says that the pod is taken."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)


def _become_subreaper() -> bool:
    """Have orphans handed to this process, so that a daemon of a step can be found and killed. Linux only."""
    if not LINUX:
        return False
    import ctypes  # 7 ms, while main and agent are starting

    answer: int = ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    return answer == 0
