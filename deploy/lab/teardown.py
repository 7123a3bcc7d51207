"""What is left of a lab whose processes are gone: shims, mounts, a bridge, and its folder."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from place import Place
from problems import Problem


def remove_remains(place: Place) -> None:
    """Raises Problem rather than remove a folder in which something is still mounted."""
    _kill_shims(place)
    for mount in reversed(_mounts(place)):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    if held := _mounts(place):
        raise Problem(f"still mounted, so that {place.state} cannot be removed: {' '.join(held)}")
    subprocess.run(["ip", "link", "delete", place.name], check=False, capture_output=True)
    shutil.rmtree(place.state, ignore_errors=True)
    if place.state.exists():  # a process that was dying wrote once more
        time.sleep(0.2)
        shutil.rmtree(place.state)


def _kill_shims(place: Place) -> None:
    """They are known by the address of the containerd that they report to."""
    address = str(place.containerd).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].rpartition(b"/")[2].startswith(b"containerd-shim") and address in words:
            os.kill(int(entry.name), signal.SIGKILL)


def _mounts(place: Place) -> list[str]:
    """In the order in which they were mounted; the kernel writes blanks as octal, which no path of ours has."""
    with open("/proc/self/mounts") as mounts:
        paths = [line.split()[1] for line in mounts]
    return [path for path in paths if path.startswith(f"{place.state}/")]
