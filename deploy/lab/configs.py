"""The configuration files of the node, written anew at every `up`."""

import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from place import Place
from problems import Problem

NODE = "localhost"
"""The node's name, which the API server resolves to reach the kubelet (logs, exec) over the loopback."""

PAUSE_IMAGE = "lab.local/pause:1"

AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "verbs": ["watch"]},
        {"level": "Metadata", "resources": [{"resources": ["pods", "secrets"]}]},
        {"level": "None"},
    ],
}
"""What the API server notes: who asked for pods and Secrets, which its metrics do not say. Parts of pods (status,
binding) are left out: they would have to be named."""

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Made at random for each lab: whoever may start a pod here is root on this machine."""

    token: str
    s3_access: str
    s3_secret: str


def read_keys(place: Place) -> Keys:
    """Raises Problem where no lab was brought up."""
    try:
        return Keys(**json.loads((place.state / "keys.json").read_text()))
    except FileNotFoundError:
        raise Problem(f"no lab is up in {place.state}: `make lab` brings one up") from None


def write_configs(place: Place) -> Keys:
    place.state.mkdir(parents=True, exist_ok=True)
    place.state.chmod(0o711)  # pods of any user look through it at their volumes; what is secret is 0600 or 0700
    for folder in ("pki", "cni", "manifests"):
        (place.state / folder).mkdir(mode=0o700, exist_ok=True)
    keys = _keys(place)
    _service_account_key(place.state / "pki" / "sa.key")
    _client_certificate(place.state / "pki" / "api-client.key", place.state / "pki" / "api-client.crt")
    _secret(place.state / "pki" / "tokens.csv", f"{keys.token},admin,admin,system:masters\n")
    _secret(place.kubeconfig, _json(_kubeconfig(place, keys)))
    (place.state / "cni" / "10-lab.conflist").write_text(_json(_network(place)))
    (place.state / "containerd.toml").write_text(_containerd(place))
    (place.state / "kubelet.json").write_text(_json(_kubelet(place)))
    (place.state / "audit.json").write_text(_json(AUDIT))
    return keys


def cni_folder() -> Path | None:
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), None)


def _keys(place: Place) -> Keys:
    file = place.state / "keys.json"
    if not file.exists():
        made = {"token": secrets.token_hex(16), "s3_access": "runyard", "s3_secret": secrets.token_hex(16)}
        _secret(file, json.dumps(made))
    return read_keys(place)


def _secret(file: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(file)


def _service_account_key(file: Path) -> None:
    if file.exists():
        return
    _secret(file, _openssl("genrsa", "2048"))


def _client_certificate(key: Path, certificate: Path) -> None:
    """By which the kubelet knows the API server; signed by itself, so that it is its own authority."""
    if certificate.exists():
        return
    _secret(key, _openssl("genrsa", "2048"))
    subject = "/O=system:masters/CN=lab-api"
    made = _openssl("req", "-x509", "-new", "-key", str(key), "-subj", subject, "-days", "3650")
    certificate.write_text(made)


def _openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


def _json(value: object) -> str:
    """JSON is YAML, and needs no library to write."""
    return json.dumps(value, indent=1) + "\n"


def _kubeconfig(place: Place, keys: Keys) -> dict[str, object]:
    cluster = {
        "server": f"https://127.0.0.1:{place.api_port}",
        "certificate-authority": str(place.state / "pki" / "apiserver.crt"),  # the API server makes its own
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": keys.token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        "current-context": "lab",
    }


def _network(place: Place) -> dict[str, object]:
    """Pods reach each other and this machine, and nothing else: no masquerading, no rules of a firewall."""
    addresses = {
        "type": "host-local",
        "dataDir": str(place.state / "addresses"),
        "ranges": [[{"subnet": place.subnet}]],
    }
    bridge = {"type": "bridge", "bridge": place.name, "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": place.name, "plugins": [bridge]}


def _containerd(place: Place) -> str:
    # restrict_oom_score_adj: root in a container or a virtual machine may often not lower the score, which runc
    # reports as "can't get final child's PID from pipe".
    return f"""version = 2
root = "{place.state}/containerd/root"
state = "{place.state}/containerd/state"
[grpc]
  address = "{place.containerd}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni_folder()}"
  conf_dir = "{place.state}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{place.state}/containerd/opt"
"""


def _kubelet(place: Place) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": place.kubelet_port,
        "healthzPort": place.kubelet_health_port,
        "authentication": {  # nobody but the API server: exec is root on this machine
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(place.state / "pki" / "api-client.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.name}",  # a kubelet kills what it does not know below its root
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{place.containerd}",
        "podLogsDir": str(place.state / "pod-logs"),  # likewise: it removes the logs of pods that it does not know
        "volumePluginDir": str(place.state / "volume-plugins"),
        "staticPodPath": str(place.state / "manifests"),
        "podCIDR": place.subnet,
        "maxPods": 250,
        "makeIPTablesUtilChains": False,
        "imageGCHighThresholdPercent": 100,  # no registry: an image that was collected cannot be had again
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
