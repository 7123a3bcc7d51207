"""Executors by name: the one place that knows them all, so that each is imported only where it is used."""

import re
from typing import TYPE_CHECKING

from runyard.errors import ConfigError
from runyard.executors.base import Executor
from runyard.metrics import NO_METRICS, Metrics
from runyard.settings import Settings

if TYPE_CHECKING:
    from runyard.executors.kubernetes.pod import Rules

LATER = ("docker",)
QUEUE = re.compile(r"kubernetes-[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def open_executor(name: str, settings: Settings, *, metrics: Metrics = NO_METRICS, tied: bool = False) -> Executor:
    """The executor of that name. Raises ConfigError for one that is not there.

    ``tied``: processes of this machine end with the one that opens it, killed or not; pods do not.

    `kubernetes-NAME` is the same as `kubernetes` on a queue of its own: a second cluster, namespace or pool of
    nodes, which a worker with other settings serves.
    """
    if name == "local":
        from runyard.executors.local.executor import LocalExecutor
        from runyard.executors.secrets import open_secrets

        return LocalExecutor(
            settings.tasks_folder,
            slots=settings.slots,
            secrets=open_secrets(settings),
            keep_folders=settings.local_keep_folders,
            pass_environment=settings.local_pass_environment,
            tied=tied,
        )
    if name == "memory":
        from runyard.executors.memory import MemoryExecutor

        return MemoryExecutor()
    if name == "kubernetes" or QUEUE.fullmatch(name):
        return _open_kubernetes(name, settings, metrics)
    if name in LATER:
        raise ConfigError(f"the executor {name!r} is not part of this version; `local` runs tasks on this machine")
    raise ConfigError(f"no executor {name!r}; there are: kubernetes, kubernetes-NAME, local, memory")


def _open_kubernetes(name: str, settings: Settings, metrics: Metrics) -> Executor:
    try:
        from runyard.executors.kubernetes.executor import KubernetesExecutor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the executor `kubernetes` needs the package {error.name}",
            remedy="Install `runyard[kubernetes]`.",
        ) from error
    from runyard.executors.kubernetes.verdict import Patience

    return KubernetesExecutor(
        name=name,
        rules=kubernetes_rules(settings),
        kubeconfig=settings.kubernetes_kubeconfig,
        context=settings.kubernetes_context,
        namespace=settings.kubernetes_namespace,
        pods=settings.kubernetes_pods,
        patience=Patience(pull_s=settings.kubernetes_pull_patience_s),
        metrics=metrics,
    )


def kubernetes_rules(settings: Settings) -> "Rules":
    """What the settings say of every pod. Raises ConfigError."""
    from runyard.executors.kubernetes.pod import ALLOWABLE, Rules
    from runyard.executors.kubernetes.template import load_template

    if not settings.kubernetes_agent_image:
        raise ConfigError(
            "the executor `kubernetes` needs the image of the agent",
            remedy="Set RUNYARD_KUBERNETES_AGENT_IMAGE to Runyard's image, of this version.",
        )
    stray = sorted(set(settings.kubernetes_allow) - set(ALLOWABLE))
    if stray:
        raise ConfigError(f"kubernetes_allow names {stray[0]!r}; it may name {', '.join(ALLOWABLE)}")
    return Rules(
        agent_image=settings.kubernetes_agent_image,
        agent_command=settings.kubernetes_agent_command,
        template=load_template(settings.kubernetes_template),
        allow=frozenset(settings.kubernetes_allow),
        secrets=settings.kubernetes_secrets,
        one_uid=settings.kubernetes_one_uid,
        spool_bytes=settings.kubernetes_spool_bytes,
        copy_log=settings.kubernetes_copy_log,
        deadline_s=settings.kubernetes_deadline_s,
    )
