"""The lab itself: a Kubernetes node and a MinIO, brought up and taken down.

Who calls `up` or `down` holds a lock, so that two at once come to the same end as one after the other. `up`
starts what is missing; where nothing is alive it first removes what a killed lab left (a lab keeps nothing that
is worth a repair). Someone who only needs the lab for a while *holds* it under a process number: the last holder
to release takes it down, unless a person brought it up with `up`. Holders that died count for nothing.
"""

import fcntl
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cgroups import make_root, remove_root
from configs import NODE, PAUSE_IMAGE, Keys, cni_folder, read_keys, write_configs
from image import Image, Layer
from images import Built
from place import Place
from problems import Problem
from processes import Process, Processes, birth
from programs import KUBELAB, MINIO, PAUSE, find_go, program_path
from programs import NODE as NODE_PROGRAMS
from teardown import remove_remains

ORDER = ("containerd", "etcd", "apiserver", "controller-manager", "scheduler", "kubelet", "minio")

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "openssl": "openssl",
}
"""program → package of Debian"""


class Node:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.processes = Processes(place.state)

    def missing(self) -> list[str]:
        """Why this machine cannot run a lab now, a sentence each. Empty: it can."""
        if os.uname().sysname != "Linux":
            return ["a lab needs Linux (elsewhere: kind or minikube, see deploy/lab/README.md)"]
        reasons = [] if os.geteuid() == 0 else ["a lab needs root, as a container runtime does"]
        if packages := self.missing_packages():
            reasons.append(f"not installed (`make lab-build` does it on Debian): {' '.join(packages)}")
        for program in NODE_PROGRAMS:
            if not program_path(self.place, program):
                try:
                    find_go(program)
                    reasons.append(
                        f"{program.name} is not built yet (`make lab-build` does it, in about 10 minutes)"
                    )
                except Problem as problem:
                    reasons.append(str(problem))
        return reasons

    def missing_packages(self) -> list[str]:
        packages = {package for program, package in PACKAGES.items() if not shutil.which(program)}
        if cni_folder() is None:
            packages.add("containernetworking-plugins")
        return sorted(packages)

    def up(self) -> None:
        """Start what is missing and wait until all is ready; then it stays. Raises Problem when it cannot be."""
        with self._locked():
            self._up()
            (self.place.state / "kept").touch()

    def down(self) -> None:
        with self._locked():
            self._down()

    def hold(self, pid: int) -> None:
        """Bring it up for as long as this process needs it."""
        born = birth(pid)
        if born is None:
            raise Problem(f"there is no process {pid} that could hold the lab")
        with self._locked():
            self._up()
            self._holders.mkdir(exist_ok=True)
            (self._holders / str(pid)).write_text(born)

    def release(self, pid: int) -> None:
        """Take it down if nobody else holds it, and no person wants it up."""
        with self._locked():
            (self._holders / str(pid)).unlink(missing_ok=True)
            if self._holders.exists() and not self._held() and not (self.place.state / "kept").exists():
                self._down()

    def start(self, name: str) -> None:
        """Start one component again, that `stop` stopped."""
        with self._locked():
            self._component(name)
            keys = read_keys(self.place)
            self._start(name, keys)
            self._wait(name, keys)

    def stop(self, name: str, *, number: signal.Signals = signal.SIGTERM) -> None:
        """End one component, as a fault does; pods go on."""
        with self._locked():
            self._component(name)
            self.processes.stop(name, number=number)

    def status(self) -> dict[str, int | None]:
        """Component → process number."""
        found = {name: self.processes.find(name) for name in ORDER}
        return {name: process.pid if process else None for name, process in found.items()}

    def keys(self) -> Keys:
        return read_keys(self.place)

    def load(self, archives: Sequence[Path]) -> None:
        """Import image archives (of `docker save`, or OCI)."""
        for archive in archives:
            self._ctr("images", "import", "--all-platforms", str(archive))

    def load_images(self, built: Sequence[Built]) -> None:
        """Import those whose content is not there already."""
        with self._locked():
            for image in built:
                mark = self.place.state / "loaded" / image.name.replace("/", "_")
                if not mark.exists() or mark.read_text() != image.key:
                    self.load([image.archive])
                    mark.parent.mkdir(exist_ok=True)
                    mark.write_text(image.key)

    def images(self) -> set[str]:
        return set(self._ctr("images", "ls", "-q").split())

    def _component(self, name: str) -> None:
        if name not in ORDER:
            raise Problem(f"the lab has no {name}: it has {', '.join(ORDER)}")

    @property
    def _holders(self) -> Path:
        return self.place.state / "holders"

    def _held(self) -> bool:
        for file in self._holders.iterdir():
            if not Process(int(file.name), file.read_text()).alive():
                file.unlink()
        return any(self._holders.iterdir())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.place.lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _up(self) -> None:
        if reasons := self.missing():
            raise Problem("\n".join(reasons))
        if not any(self.status().values()):
            self._down()
        keys = write_configs(self.place)
        make_root(self.place.name)
        for name in ORDER:
            self._start(name, keys)
            if name in ("containerd", "apiserver"):  # the others need these from their first moment
                self._wait(name, keys)
            if name == "containerd":
                self._pause_image()
        for name in ("minio", "kubelet", "controller-manager"):
            self._wait(name, keys)

    def _down(self) -> None:
        self.processes.stop("kubelet")  # first: it would start again what ends
        for name in reversed(ORDER):
            self.processes.stop(name)
        remove_root(self.place.name)
        remove_remains(self.place)

    def _start(self, name: str, keys: Keys) -> None:
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.place.state)}
        if name == "minio":
            environ |= {"MINIO_ROOT_USER": keys.s3_access, "MINIO_ROOT_PASSWORD": keys.s3_secret}
            environ |= {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CI_CD": "on"}
        self.processes.start(name, self._command(name), environ=environ)

    def _wait(self, name: str, keys: Keys) -> None:
        self.processes.wait(name, partial(self._ready, name, keys))

    def _ready(self, name: str, keys: Keys) -> bool:
        if name == "containerd":
            return self._ctr_answers()
        if name == "minio":
            return _answer(f"http://127.0.0.1:{self.place.s3_port}/minio/health/live") is not None
        ask = partial(self._ask_api, keys)
        if name in ("etcd", "apiserver"):
            return ask("/readyz") is not None
        if name in ("controller-manager", "scheduler"):
            return ask("/api/v1/namespaces/default/serviceaccounts/default") is not None
        node = json.loads(ask(f"/api/v1/nodes/{NODE}") or "{}")
        return {"Ready": "True"}.items() <= {
            condition["type"]: condition["status"] for condition in node.get("status", {}).get("conditions", ())
        }.items()

    def _ask_api(self, keys: Keys, path: str) -> str | None:
        authority = self.place.state / "pki" / "apiserver.crt"
        if not authority.exists():
            return None
        return _answer(f"https://127.0.0.1:{self.place.api_port}{path}", token=keys.token, authority=authority)

    def _ctr_answers(self) -> bool:
        return subprocess.run(self._ctr_command("version"), capture_output=True).returncode == 0

    def _ctr_command(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self.place.containerd), "--namespace", "k8s.io", *arguments]

    def _ctr(self, *arguments: str) -> str:
        done = subprocess.run(self._ctr_command(*arguments), capture_output=True, text=True)
        if done.returncode:
            raise Problem(f"containerd refused {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _pause_image(self) -> None:
        if PAUSE_IMAGE in self.images():
            return
        archive = self.place.state / "pause.tar"
        layer = Layer.of_files({"pause": (self.place.bin / PAUSE.name).read_bytes()})
        Image(name=PAUSE_IMAGE, layers=(layer,), entrypoint=("/pause",)).write(archive)
        self.load([archive])
        archive.unlink()

    def _command(self, name: str) -> list[str]:
        place = self.place
        kubelab, api = str(place.bin / KUBELAB.name), f"https://127.0.0.1:{place.api_port}"
        etcd, pki = f"http://127.0.0.1:{place.etcd_port}", place.state / "pki"
        client = f"--kubeconfig={place.kubeconfig}"
        match name:
            case "containerd":
                return ["containerd", "--config", f"{place.state}/containerd.toml"]
            case "etcd":  # its data need not survive the machine
                return [kubelab, "etcd", f"--data-dir={place.state}/etcd", "--unsafe-no-fsync",
                        f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
                        "--listen-peer-urls=http://127.0.0.1:0"]  # fmt: skip
            case "apiserver":
                return [kubelab, "kube-apiserver", f"--etcd-servers={etcd}", f"--secure-port={place.api_port}",
                        "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                        "--endpoint-reconciler-type=none", f"--cert-dir={pki}",
                        f"--audit-policy-file={place.state}/audit.json", f"--audit-log-path={place.audit_log}",
                        "--audit-log-maxsize=200", "--audit-log-maxbackup=1",
                        f"--token-auth-file={pki}/tokens.csv", "--authorization-mode=Node,RBAC",
                        f"--service-account-issuer={api}", f"--service-account-key-file={pki}/sa.key",
                        f"--service-account-signing-key-file={pki}/sa.key",
                        f"--kubelet-client-certificate={pki}/api-client.crt",
                        f"--kubelet-client-key={pki}/api-client.key",
                        "--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true",
                        "--kubelet-preferred-address-types=Hostname"]  # fmt: skip
            case "controller-manager":
                return [kubelab, "kube-controller-manager", client, "--leader-elect=false",
                        "--bind-address=127.0.0.1", f"--secure-port={place.controllers_port}",
                        f"--cert-dir={pki}/controllers",
                        f"--service-account-private-key-file={pki}/sa.key",
                        f"--root-ca-file={pki}/apiserver.crt", "--use-service-account-credentials"]  # fmt: skip
            case "scheduler":
                return [kubelab, "kube-scheduler", client, "--leader-elect=false", "--bind-address=127.0.0.1",
                        f"--secure-port={place.scheduler_port}", f"--cert-dir={pki}/scheduler"]  # fmt: skip
            case "kubelet":
                return [kubelab, "kubelet", f"--config={place.state}/kubelet.json", client,
                        f"--root-dir={place.state}/kubelet", f"--cert-dir={pki}/kubelet",
                        f"--hostname-override={NODE}"]  # fmt: skip
            case _:
                return [str(place.bin / MINIO.name), "server", f"--address=127.0.0.1:{place.s3_port}",
                        f"{place.state}/s3"]  # fmt: skip


def _answer(url: str, *, token: str = "", authority: Path | None = None) -> str | None:
    """None: not there, or not well, yet."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    trust = ssl.create_default_context(cafile=authority) if authority else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        with opener.open(asked, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, OSError):
        return None
