"""The control groups that a lab's pods are in: a root of its own, so that nothing else is touched.

The kubelet wants its root to exist, in each hierarchy where there are several (version 1). Whatever is in them
when the lab goes is killed: that catches every process of every pod, whoever started it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


def make_root(name: str) -> None:
    for root in _roots(name):
        root.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):  # version 1: a new set is empty, and admits nobody
            if (root / inherited).exists() and not (root / inherited).read_text().strip():
                (root / inherited).write_text((root.parent / inherited).read_text())
    if _unified():
        wanted = (MOUNT / "cgroup.controllers").read_text().split()
        (MOUNT / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in wanted))


def remove_root(name: str) -> None:
    """Kill what is in it, then remove it. What a dying process still holds is left; the next time finds it."""
    deadline = time.monotonic() + 5
    while (pids := _pids(name)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for root in _roots(name):
        for group in sorted(_groups(root), key=lambda group: len(group.parts), reverse=True):
            try:
                group.rmdir()
            except OSError:
                break


def _unified() -> bool:
    return (MOUNT / "cgroup.controllers").exists()


def _roots(name: str) -> list[Path]:
    if _unified():
        return [MOUNT / name]
    # version 1: a folder a hierarchy; those of several controllers have links under each one's name
    return [folder / name for folder in MOUNT.iterdir() if folder.is_dir() and not folder.is_symlink()]


def _groups(root: Path) -> Iterator[Path]:
    return (Path(folder) for folder, _, _ in os.walk(root))


def _pids(name: str) -> set[int]:
    found = set()
    for root in _roots(name):
        for group in _groups(root):
            try:
                found |= {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
            except (FileNotFoundError, OSError):
                continue
    return found
