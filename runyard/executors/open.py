"""Executors by name: the one place that knows them all, so that each is imported only where it is used."""

from runyard.errors import ConfigError
from runyard.executors.base import Executor
from runyard.settings import Settings

LATER = ("docker", "kubernetes")


def open_executor(name: str, settings: Settings) -> Executor:
    """The executor of that name. Raises ConfigError for one that is not there."""
    if name == "local":
        from runyard.executors.local.executor import LocalExecutor
        from runyard.executors.secrets import open_secrets

        return LocalExecutor(
            settings.tasks_folder,
            slots=settings.slots,
            secrets=open_secrets(settings),
            keep_folders=settings.local_keep_folders,
            pass_environment=settings.local_pass_environment,
        )
    if name == "memory":
        from runyard.executors.memory import MemoryExecutor

        return MemoryExecutor()
    if name in LATER:
        raise ConfigError(f"the executor {name!r} is not part of this version; `local` runs tasks on this machine")
    raise ConfigError(f"no executor {name!r}; there are: local, memory")
