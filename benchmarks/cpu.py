"""Who used the processors: seconds so far, by part, of this machine and of the lab on it.

A pace says little on a machine that others use too; seconds of processor time say nearly the same under any load.
containerd is put into a control group of its own for the time: the shims and runcs that it starts are too many
and too short to be looked at one by one. What the kernel does in threads of its own is in nobody's account.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RUNTIME: Final = "containerd"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_GROUPS: Final = Path("/sys/fs/cgroup")


class Accounts:
    """``lab`` is the folder of the running lab (see deploy/lab)."""

    def __init__(self, lab: Path, runtime: Path) -> None:
        root: str = json.loads((lab / "kubelet.json").read_text())["cgroupRoot"]
        self._pods = _groups() / root.strip("/")
        self._runtime = runtime
        files = sorted((lab / "run").iterdir())
        self._components = {file.name: _pid(file) for file in files if file.name != RUNTIME}

    @classmethod
    @contextlib.contextmanager
    def open(cls, lab: Path) -> Iterator["Accounts"]:
        group = _groups() / f"{lab.name}-runtime"
        group.mkdir(exist_ok=True)
        try:
            (group / "cgroup.procs").write_text(str(_pid(lab / "run" / RUNTIME)))
            yield cls(lab, group)
        finally:
            while pids := (group / "cgroup.procs").read_text().split():
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):  # a shim that has just ended
                        (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()

    def used_s(self) -> dict[str, float]:
        parts = {name: _process_s(pid) for name, pid in self._components.items()}
        parts["containerd, shims and runc"] = _group_s(self._runtime)
        parts["pods"] = _group_s(self._pods)
        parts["worker and client"] = _process_s(os.getpid())
        parts["Temporal server"] = sum(map(_process_s, _below(os.getpid())))
        return parts


def _pid(file: Path) -> int:
    return int(file.read_text().split()[0])


def _groups() -> Path:
    """Where processor time is counted, in either version of control groups."""
    return _GROUPS / "cpuacct" if (_GROUPS / "cpuacct").exists() else _GROUPS


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _below(child)


def _process_s(pid: int) -> float:
    """Its own, and that of its children which have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _group_s(group: Path) -> float:
    """Of all that is or was in it or below it."""
    old = group / "cpuacct.usage"
    if old.exists():
        return int(old.read_text()) / 1e9
    return int((group / "cpu.stat").read_text().split()[1]) / 1e6
