"""What a nest writes and reads in its pod's folder, which is its working directory. Standard library only."""

from __future__ import annotations

import os
import stat
import sys
import time

from runyard.executors.local.process import look, suppress

CLAIM = "nest.json"
STATUS = "status.json"
STOP = "stop.json"
RESERVE_BYTES = 16 << 10
RESERVE = "reserve"  # room for the status on a disk that the task has filled


def claim(uid: str, pid: int) -> bool:
    """Take the pod whose folder is the working directory. A link is made whole, and by one process only."""
    row = look(pid)
    started = row.started if row else ""
    temporary = f".{CLAIM}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(f'{{"pid": {pid}, "started": "{started}", "uid": "{uid}"}}\n')
    try:
        os.link(temporary, CLAIM)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def granted_s(default: float) -> float:
    text = read(STOP)
    try:
        return float(text.partition(":")[2].strip().rstrip("}\n "))
    except ValueError:
        return default


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_status(status: dict[str, object], *, swept: bool) -> None:
    """By hand: importing json would cost more than everything else here.

    A removed folder is no error. A full disk is waited for, since how main ended is known nowhere else.
    """
    words = [f'"{key}": {as_json(value)}' for key, value in {**status, "swept": swept}.items()]
    while True:
        try:
            with open(f".{STATUS}", "w") as file:
                file.write("{" + ", ".join(words) + "}\n")
            os.replace(f".{STATUS}", STATUS)
        except FileNotFoundError:
            return
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(RESERVE)  # the task itself may have filled the disk: then nobody else makes room
                continue
            with suppress(OSError):  # the log is on the same disk
                sys.stderr.write(f"status.json cannot be written: {error}\n")
            time.sleep(1)
        else:
            return


def as_json(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return '"' + "".join(_character(one) for one in str(value)) + '"'


def _character(one: str) -> str:
    return "\\" + one if one in '\\"' else one if 32 <= ord(one) < 127 else _escape(one)


def _escape(one: str) -> str:
    data = one.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))


def remove_fifos(folder: str) -> None:
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)
