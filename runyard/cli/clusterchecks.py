"""What `doctor` tries on a cluster: that of the settings, in the namespace where they place tasks."""

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from runyard import __version__
from runyard.cli.checks import Check
from runyard.errors import RunyardError

if TYPE_CHECKING:
    from runyard.executors.kubernetes.api import Api
    from runyard.executors.kubernetes.pod import Rules
    from runyard.settings import Settings


async def cluster(settings: "Settings", *, deep: bool) -> AsyncIterator[Check]:
    """Rights, quotas, whether a pod would be taken, the agent's version. ``deep`` makes a pod of some seconds."""
    from runyard.executors.open import kubernetes_rules

    try:
        from runyard.executors.kubernetes.api import Api, Refused

        rules = kubernetes_rules(settings)
        api = await Api.open(
            kubeconfig=settings.kubernetes_kubeconfig,
            context=settings.kubernetes_context,
            namespace=settings.kubernetes_namespace,
        )
    except ModuleNotFoundError:
        return  # the check of the executor says so
    except RunyardError as error:
        yield Check("cluster", "wrong", error.message, error.remedy)
        return
    try:
        rights = await _rights(api)
        yield rights
        yield await _nice(api)
        yield await _quota(api)
        if rights.state == "ok":  # else it is known already that a pod cannot be made
            yield await _pod(api, rules)
        yield await _agent(api, rules, deep=deep and rights.state == "ok")
    except Refused as error:
        remedy = (
            "Credentials that have expired, or are another cluster's? `kubectl auth whoami` tells whose they are."
        )
        yield Check("cluster", "wrong", f"{api.server}: {error.message or error.word}", remedy)
    except RunyardError as error:
        yield Check("cluster", "wrong", error.message, error.remedy)
    finally:
        await api.close()


async def _rights(api: "Api") -> Check:
    from runyard.executors.kubernetes.examine import RIGHTS, missing_rights

    missing = await missing_rights(api, RIGHTS)
    where = f"namespace {api.namespace} at {api.server}"
    if missing:
        return Check(
            "rights", "wrong", f"{await _whose(api)} may not {_words(missing)} in {where}", _grant(api, missing)
        )
    return Check("rights", "ok", f"{where}: {_words(RIGHTS)}")


async def _nice(api: "Api") -> Check:
    from runyard.executors.kubernetes.examine import NICE, missing_rights

    missing = await missing_rights(api, NICE)
    if missing:
        said = f"{await _whose(api)} may not {_words(missing)}: why a pod waits is told less well"
        return Check("rights, more", "warning", said, _grant(api, missing))
    return Check("rights, more", "ok", _words(NICE))


async def _whose(api: "Api") -> str:
    from runyard.executors.kubernetes.api import Refused

    try:
        return await api.account() or "this account"
    except Refused:  # a cluster before 1.28 does not tell
        return "this account"


def _words(rights: Mapping[str, object]) -> str:
    """`get, list pods; create secrets`."""
    return "; ".join(
        f"{', '.join(verbs)} {kind}" for kind, verbs in rights.items() if isinstance(verbs, list | tuple)
    )


def _grant(api: "Api", missing: Mapping[str, list[str]]) -> str:
    rules = "; ".join(f"{kind}: [{', '.join(verbs)}]" for kind, verbs in missing.items())
    return f"Add to its Role in {api.namespace}: {rules}. The chart's `rbac.create` makes a whole one."


async def _quota(api: "Api") -> Check:
    from runyard.executors.kubernetes.api import Refused
    from runyard.executors.kubernetes.examine import quotas

    try:
        found = await quotas(api)
    except Refused as error:
        return Check(
            "quota", "warning", f"cannot be read: {error.message}", "Let the account list resourcequotas."
        )
    return Check("quota", "ok", "; ".join(map(str, found)) or f"none in namespace {api.namespace}")


async def _pod(api: "Api", rules: "Rules") -> Check:
    """A create that makes nothing: as one task, which names no resources, would fare now."""
    from runyard.executors.kubernetes.examine import try_pod

    try:
        waits = await try_pod(api, rules)
    except RunyardError as error:
        return Check("pod", "wrong", error.message, error.remedy)
    if waits:
        remedy = (
            "Tasks wait until others have ended. Where nothing runs, something else uses it up: raise the quota."
        )
        return Check("pod", "warning", f"there is no room for one more: {waits}", remedy)
    return Check("pod", "ok", "one of a task that asks for nothing would be taken now")


async def _agent(api: "Api", rules: "Rules", *, deep: bool) -> Check:
    from runyard.executors.kubernetes.examine import agent_version

    image, remedy = rules.agent_image, f"Set RUNYARD_KUBERNETES_AGENT_IMAGE to the image of {__version__}."
    name = image.rpartition("/")[2].partition("@")[0]
    tag = name.partition(":")[2]
    if not deep:
        if tag == __version__:
            return Check("agent", "ok", f"{image} is named after this version")
        said = f"{image} does not say its version by its name; it must be {__version__}, as here"
        return Check("agent", "warning", said, "`runyard doctor --deep` asks it, by a pod of some seconds.")
    try:
        version = await agent_version(api, rules)
    except RunyardError as error:
        return Check("agent", "wrong", f"{image}: {error.message}", error.remedy)
    if version == __version__:
        return Check("agent", "ok", f"{image} is of version {version}, as here")
    if not version:
        return Check("agent", "warning", f"{image} has the agent only, and does not say of which version", remedy)
    return Check("agent", "wrong", f"{image} is of version {version}, and this is {__version__}", remedy)
