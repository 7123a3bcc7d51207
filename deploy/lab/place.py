"""Where a lab is: its folders, ports and addresses, all from three variables.

``RUNYARD_LAB`` (default ``~/.cache/runyard-lab``) keeps what is costly to make: programs and images.
``RUNYARD_LAB_STATE`` (default ``/var/lib/runyard-lab``) is the running lab, which `down` removes whole. It holds
Unix sockets, whose paths may have about 100 characters, and so is not below a home folder.
``RUNYARD_LAB_PORT`` (default 26440) is the first of seven ports. Everything that two labs on one machine would
quarrel about (bridge, subnet, control group, network) has a name made from it.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from problems import Problem

SOCKET_PATH_CHARACTERS = 70
"""What a state folder may have, so that the kubelet's longest socket stays below the kernel's 108."""


@dataclass(frozen=True, kw_only=True)
class Place:
    home: Path
    state: Path
    port: int

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """A line of JSON for each request for pods and Secrets."""
        return self.state / "audit.log"

    @property
    def containerd(self) -> Path:
        return self.state / "containerd.sock"

    @property
    def lock(self) -> Path:
        """Not in the state folder: it must outlive the `down` that holds it."""
        return Path(tempfile.gettempdir()) / f"{self.name}.lock"

    @property
    def name(self) -> str:
        """Of the bridge (15 characters at most), the network, and the control group."""
        return f"ryd{self.port}"

    @property
    def subnet(self) -> str:
        return f"10.{90 + self.port % 100}.0.0/24"

    @property
    def api_port(self) -> int:
        return self.port

    @property
    def etcd_port(self) -> int:
        return self.port + 1

    @property
    def s3_port(self) -> int:
        return self.port + 2

    @property
    def kubelet_port(self) -> int:
        return self.port + 3

    @property
    def kubelet_health_port(self) -> int:
        return self.port + 4

    @property
    def controllers_port(self) -> int:
        return self.port + 5

    @property
    def scheduler_port(self) -> int:
        return self.port + 6


def place_of(environ: Mapping[str, str] = os.environ) -> Place:
    """Raises Problem for a port that is no number, or a state folder whose path is too long for sockets."""
    home = environ.get("RUNYARD_LAB") or "~/.cache/runyard-lab"
    state = Path(environ.get("RUNYARD_LAB_STATE") or "/var/lib/runyard-lab").absolute()
    port = environ.get("RUNYARD_LAB_PORT") or "26440"
    if not port.isdecimal() or not 1024 <= int(port) < 65530:
        raise Problem(f"RUNYARD_LAB_PORT={port} is no port between 1024 and 65529")
    if len(str(state)) > SOCKET_PATH_CHARACTERS:
        raise Problem(f"RUNYARD_LAB_STATE={state} is longer than {SOCKET_PATH_CHARACTERS} characters")
    return Place(home=Path(home).expanduser().absolute(), state=state, port=int(port))
