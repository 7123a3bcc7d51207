"""What a task sees of this machine: its environment, its limits, and what it cannot have here.

HOME is a folder of the task's own, so that two tasks that use `~/project` or fill `~/.cache` do not meet, and
so that a cache or workspace that a step names with `~` means the same as in a container. That hides the
user's own dotfiles from the steps, as a container would; settings in the environment (PIP_*, UV_*, proxies,
the homes of tool chains) are passed on, and `local_pass_environment` passes more. TMPDIR is the worker's:
names of sockets below a pod's folder would grow too long. The agent, which clones, keeps the user's HOME for
git's configuration and credentials.
"""

import fnmatch
import os
import platform
import random
from collections.abc import Iterable, Mapping

from runyard.executors.local.process import LINUX
from runyard.spec.plan import TaskPlan

PASSED = (
    *("PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM"),
    *("SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_*"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "FTP_PROXY"),
    *("PIP_*", "UV_*", "PYENV_ROOT", "CARGO_HOME", "RUSTUP_HOME", "GOROOT", "GOPROXY", "NVM_DIR", "JAVA_HOME"),
)
_NOT_PASSED = ("*_CACHE_DIR",)  # a cache that a step names by `~` must be the one that its tools use
_FOR_THE_AGENT = (
    "HOME",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "GIT_SSH*",
    "GIT_ASKPASS",
    "GIT_CONFIG*",
    "GIT_PROXY_*",
)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def base_environment(environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """What of the worker's environment any task gets; ``more`` are names or patterns with `*`."""
    passed = {
        name: value
        for name, value in environ.items()
        if _matches(name, more) or (_matches(name, PASSED) and not _matches(name, _NOT_PASSED))
    }
    return {"PATH": os.defpath, **passed}


def agent_environment(environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    return base_environment(environ, (*_FOR_THE_AGENT, *more))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def cores(task: TaskPlan) -> list[int]:
    """The cores that a task is held to: as many as it asks for, any of them; empty = all."""
    cpu = task.resources.cpu
    if cpu is None or not hasattr(os, "sched_getaffinity"):
        return []
    here = sorted(os.sched_getaffinity(0))
    wanted = max(1, -int(-cpu // 1))
    return sorted(random.sample(here, wanted)) if wanted < len(here) else []


def refusals(task: TaskPlan) -> list[str]:
    """Why a task cannot run as processes of this machine."""
    sentences = []
    if len(task.containers) > 1:
        names = ", ".join(container.name or container.image for container in task.containers[1:])
        sentences.append(
            f"services ({names}) do not run as local processes; the executors `docker` and `kubernetes` run them"
        )
    if any(container.privileged for container in task.containers):
        sentences.append(
            "`privileged` would give the steps this machine itself; only the executors `docker` and `kubernetes` "
            "run privileged containers"
        )
    here = _architecture()
    if task.arch and task.arch != here:
        sentences.append(f"the task asks for the architecture {task.arch}, and this machine is {here}")
    return sentences


def remarks(task: TaskPlan) -> list[str]:
    """What of a task is not heeded here, for its setup log."""
    main = task.containers[0] if task.containers else None
    said = []
    if main is not None:
        said.append(f"The image {main.image} is not used: the steps are processes of this machine.")
    user = task.user or (main.user if main else "")
    if user:
        said.append(f"`user: {user}` is not heeded: the steps run as the user of the worker.")
    if main is not None and main.entrypoint:
        said.append("`entrypoint` is not heeded: there is no image.")
    if main is not None and main.volumes:
        paths = ", ".join(volume.path for volume in main.volumes)
        said.append(f"The tmpfs volumes ({paths}) are not mounted.")
    return said + _limits(task)


def _limits(task: TaskPlan) -> list[str]:
    said = []
    if task.resources.memory_bytes is not None:
        said.append(
            f"The memory limit of {task.resources.memory_bytes} bytes is held by looking at the task's processes "
            "5 times a second and killing the largest once they are over it."
        )
    if task.resources.cpu is not None:
        held = f"is held by binding the task to {max(1, -int(-task.resources.cpu // 1))} core(s)"
        said.append(
            f"The CPU limit of {task.resources.cpu:g} {held if LINUX else 'is not heeded on this system'}."
        )
    if task.resources.disk_bytes is not None:
        said.append("The disk limit is not heeded by local processes.")
    return said


def _architecture() -> str:
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)
