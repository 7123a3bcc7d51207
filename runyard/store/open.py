"""The store that the settings ask for."""

from runyard.errors import ConfigError
from runyard.settings import Settings
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore


def open_store(settings: Settings, *, durable: bool = True) -> ObjectStore:
    """Open the store; a folder is made where missing.

    Without ``durable`` writes are not waited for until they are on the disk: for a run of a few seconds whose
    records nobody needs after a loss of power. Raises ConfigError, StoreDenied, StoreUnavailable.
    """
    if settings.store == "posix":
        return PosixStore(settings.posix_folder, durable=durable)
    if settings.store == "posixflat":
        return PosixFlatStore(settings.posix_folder, durable=durable)
    raise ConfigError(
        f"the settings ask for a store of the kind `{settings.store}`, which this version has no module for",
        remedy="Set RUNYARD_STORE=posix and RUNYARD_STORE_FOLDER to a folder.",
    )
