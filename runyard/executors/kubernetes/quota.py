"""What a refused create means: pure.

A quota that is used up answers 403 Forbidden, and so do a quota that wants limits to be named, a LimitRange, an
admission policy and missing rights. Only the first gets better by itself, and only the text tells them
apart.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from runyard.errors import (
    BeyondQuota,
    ConfigError,
    ExecutorError,
    Forbidden,
    NotAdmitted,
    RunyardError,
    StartError,
)
from runyard.executors.kubernetes.api import Refused

_EXCEEDED = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>.*), used: (?P<used>.*), limited: (?P<limited>.*)"
)
_BY_POLICY = ("ValidatingAdmissionPolicy", "admission webhook")
"""Policies choose the status of their refusal themselves; these words are the API server's."""
_SUFFIXES = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20),
    "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """A quota that has no room for a pod now: what the pod asks of it, what is in use, what there is."""

    quota: str
    requested: Mapping[str, str]
    used: Mapping[str, str]
    limited: Mapping[str, str]

    def __str__(self) -> str:
        short = [name for name in self.requested if self._short(name)]
        numbers = ", ".join(
            f"{self.used.get(n, '?')} of {self.limited.get(n, '?')} {n} in use" for n in short or self.requested
        )
        return f"quota {self.quota}: {numbers}"

    def __bool__(self) -> bool:
        return any(map(self._short, self.requested))

    def _short(self, name: str) -> bool:
        return exceeds([self.requested[name], self.used.get(name, "")], self.limited.get(name, ""))


def shortage(refused: Refused) -> Shortage | None:
    """What there is no room in now; None where waiting does not help."""
    found = _EXCEEDED.search(refused.message) if refused.status == 403 else None
    if found is None or _beyond(found):
        return None
    requested, used, limited = _amounts(found["requested"]), _amounts(found["used"]), _amounts(found["limited"])
    return Shortage(quota=found["name"], requested=requested, used=used, limited=limited)


def exceeds(amounts: Iterable[str], limit: str) -> bool:
    """Whether they are more than the limit together. What is no number of Kubernetes is never too much."""
    numbers, most = [_number(amount) for amount in amounts], _number(limit)
    return most is not None and None not in numbers and sum(n for n in numbers if n is not None) > most


def growth(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Decimal]:
    """By how much each amount is more than it was. What is no number of Kubernetes did not grow."""
    zero = Decimal(0)
    return {
        name: (_number(amount) or zero) - (_number(before.get(name, "0")) or zero)
        for name, amount in after.items()
    }


def as_error(refused: Refused, *, what: str = "the pod") -> RunyardError:
    """The error of a create that will not get better by itself."""
    said = refused.message or f"{refused.status} {refused.word}"
    found = _EXCEEDED.search(said)
    if refused.status == 403 and found is not None:
        return BeyondQuota(
            f"the task asks for more than the quota {found['name']} allows at all: {found['requested']}, "
            f"allowed: {found['limited']}"
        )
    if refused.status == 403 and "failed quota" in said:
        return ConfigError(
            f"a quota of the namespace wants every pod to say what it needs: {said}",
            remedy="Set `resources: {cpu: ..., memory: ...}` in the task, or defaults in the pod template.",
        )
    if refused.status == 403 and refused.word == "Forbidden" and "cannot create resource" in said:
        return Forbidden(
            f"the worker may not create {what}: {said}", remedy="Give the worker's service account that right."
        )
    if refused.status == 404:
        return ConfigError(
            f"{what} cannot be created: {said}", remedy="Create the namespace, or correct its name."
        )
    if refused.status == 403 and "because it is being terminated" in said:
        return ConfigError(
            f"{what} cannot be created: {said}",
            remedy="The namespace is being deleted: have the worker make pods in another one.",
        )
    if refused.status == 403 or any(words in said for words in _BY_POLICY):
        return NotAdmitted(f"the cluster does not admit {what}: {said}")
    if refused.status in (400, 422, 413):
        return StartError(f"the cluster does not take {what}: {said}")
    return ExecutorError(f"{what} cannot be created: {said}")  # 401 for one: credentials are renewed


def _beyond(found: re.Match[str]) -> bool:
    requested, limited = _amounts(found["requested"]), _amounts(found["limited"])
    return any(exceeds([amount], limited.get(name, "")) for name, amount in requested.items())


def _amounts(words: str) -> Mapping[str, str]:
    return dict(pair.rpartition("=")[::2] for pair in words.split(",") if "=" in pair)


def _number(words: str) -> Decimal | None:
    """A quantity as Kubernetes writes it: `100m`, `2Gi`, `3`."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]{0,2})\s*", words)
    if found is None or found[2] not in _SUFFIXES:
        return None
    try:
        return Decimal(found[1]) * _SUFFIXES[found[2]]
    except InvalidOperation:
        return None
