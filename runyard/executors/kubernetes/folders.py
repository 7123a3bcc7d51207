"""Which folders main and agent must share, so that what one unpacks the other finds.

Everything below the home folder is one volume in both. A folder that a step names elsewhere becomes a further
volume in both, at the same path. What the image has at that path is hidden, which is why the folders of
an operating system are refused.
"""

import posixpath
from collections.abc import Iterator

from runyard.spec.plan import (
    CloneStep,
    RestoreCacheStep,
    RestoreWorkspaceStep,
    RunStep,
    SaveCacheStep,
    SaveToWorkspaceStep,
    TaskPlan,
)

HOME = "/home/runyard"
DIALOGUE = "/runyard"
_SYSTEM = (
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "proc",
    "run",
    "runyard",
    "sbin",
    "sys",
    "usr",
    "var",
)
_ALLOWED = ("/var/tmp", "/var/cache", "/var/lib", "/usr/src", "/usr/local/src", "/run/user")


def home_of(task: TaskPlan) -> str:
    """HOME of main: ours, unless the run file says otherwise."""
    for environment in (task.environment, task.containers[0].environment):
        value = environment.get("HOME")
        if isinstance(value, str) and value:
            return posixpath.normpath(value)
    return HOME


def shared(task: TaskPlan) -> list[str]:
    """Folders beside HOME that need a mount of their own, outermost only."""
    found = sorted({folder for folder in _named(task) if not _below(folder, HOME)})
    return [folder for folder in found if not any(folder != other and _below(folder, other) for other in found)]


def refusals(task: TaskPlan) -> list[str]:
    return [
        f"the folder {folder} cannot be shared with the agent, since that would hide what the image has there; "
        f"use a folder below `~`, or another of its own"
        for folder in shared(task)
        if not _may_hide(folder)
    ] + [
        f"the folder {folder} is nowhere that main and the agent share: name it from `/` or `~` on, without `..`"
        for folder in dict.fromkeys(_outside(task))
    ]


def common(task: TaskPlan) -> list[str]:
    """What main and the agent share of the task's files."""
    return [HOME, *shared(task)]


def _outside(task: TaskPlan) -> Iterator[str]:
    """Folders that the agent would look for in its own container."""
    home, places = home_of(task), common(task)

    def place(folder: str, base: str) -> str:
        if folder == "~" or folder.startswith("~/"):
            folder = home + folder[1:]
        return posixpath.normpath(posixpath.join(base, folder))

    cwd = place(task.working_dir or "~/project", "")
    for folder in _dirs(task):
        if not any(_below(place(folder, cwd), each) for each in places):
            yield folder


def _may_hide(folder: str) -> bool:
    if any(folder != allowed and _below(folder, allowed) for allowed in _ALLOWED):
        return True
    top = folder.split("/")[1]
    return top not in ("", *_SYSTEM) and folder != "/home"


def _named(task: TaskPlan) -> Iterator[str]:
    """Absolute folders, without the part that a glob begins."""
    home = home_of(task)
    if uses_agent(task):
        yield home
    for folder in _dirs(task):
        if folder.startswith("/"):
            yield posixpath.normpath(folder)


def _dirs(task: TaskPlan) -> Iterator[str]:
    if uses_agent(task):
        yield task.working_dir
    for step in task.steps:
        if step.skip or isinstance(step, RunStep | CloneStep):
            continue
        if isinstance(step, SaveToWorkspaceStep | SaveCacheStep):
            yield from (content.source_dir for content in step.contents)
        elif isinstance(step, RestoreWorkspaceStep | RestoreCacheStep):
            yield step.dest_dir


def uses_agent(task: TaskPlan) -> bool:
    """Whether the agent reads or writes files of the task at all."""
    return any(not step.skip and not isinstance(step, RunStep) for step in task.steps)


def _below(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(other.rstrip("/") + "/")
