"""The administrator's part of a pod: a partial manifest, laid over ours.

The rule is the one of the API's strategic merge, as far as pods need it: objects are merged key by key, `null`
removes a key, containers are merged by name; in the lists of `KEYS` an entry takes the place of ours of the same
key, or is added; any other list takes the place of ours. Directives (`$patch`) are not known: `null` and
an entry of the same key do what they are used for.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runyard.errors import ConfigError

MERGED = {"containers": "name", "initContainers": "name"}
KEYS: dict[str, tuple[str, ...]] = {
    "env": ("name",),
    "envFrom": ("prefix", "secretRef", "configMapRef"),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "tolerations": ("key", "operator", "value", "effect"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}

Manifest = dict[str, Any]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Manifest:
    """``base`` with ``over`` laid over it; neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and isinstance(result.get(key), list):
            result[key] = _merge_lists(key, result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_lists(key: str, base: list[Any], over: list[Any]) -> list[Any]:
    names = (MERGED[key],) if key in MERGED else KEYS.get(key)
    if names is None or not all(isinstance(each, Mapping) for each in (*base, *over)):
        return copy.deepcopy(over)
    result = list(base)
    for entry in over:
        at = next((n for n, each in enumerate(result) if _same(each, entry, names)), None)
        if at is None:
            result.append(copy.deepcopy(entry))
        else:
            result[at] = merge(result[at], entry) if key in MERGED else copy.deepcopy(entry)
    return result


def _same(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(one.get(name) == other.get(name) for name in names)


def load_template(path: Path | None) -> Manifest:
    """The template in that file, YAML or JSON. Raises ConfigError that says what is wrong with it."""
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"the pod template {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the pod template {path} is no YAML: {error}") from error
    problem = _problem({} if found is None else found)
    if problem:
        raise ConfigError(f"the pod template {path} {problem}")
    return found or {}


def _problem(found: object) -> str:
    if not isinstance(found, dict):
        return "is no object; it has `metadata` and `spec`, as a pod has"
    stray = set(found) - {"apiVersion", "kind", "metadata", "spec"}
    if stray:
        return f"has the key {min(map(str, stray))!r}; it may have `metadata` and `spec`, as a pod has"
    if found.get("kind", "Pod") != "Pod":
        return f"is a {found['kind']}, not a Pod"
    for key in ("metadata", "spec"):
        if not isinstance(found.get(key, {}), dict):
            return f"has a `{key}` that is no object"
    containers = found.get("spec", {}).get("containers", [])
    if not isinstance(containers, list) or not all(isinstance(c, dict) and c.get("name") for c in containers):
        return "has a container without a name: `main` runs the steps, `agent` is ours, services are `svc-NAME`"
    return ""
