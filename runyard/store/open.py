"""The store that the settings ask for."""

from runyard.errors import ConfigError
from runyard.settings import Settings
from runyard.store.base import ObjectStore
from runyard.store.posix import PosixStore
from runyard.store.posixflat import PosixFlatStore


def open_store(settings: Settings, *, durable: bool = True) -> ObjectStore:
    """Open the store; a folder is made where missing, a bucket is not asked for.

    Without ``durable`` writes are not waited for until they are on the disk: for a run of a few seconds whose
    records nobody needs after a loss of power. Raises ConfigError, StoreDenied, StoreUnavailable.
    """
    if settings.store == "posix":
        return PosixStore(settings.posix_folder, durable=durable)
    if settings.store == "posixflat":
        return PosixFlatStore(settings.posix_folder, durable=durable)
    return _open_s3(settings)


def _open_s3(settings: Settings) -> ObjectStore:
    try:
        from runyard.store.s3.store import open_s3  # whoever keeps a folder does not wait for this import
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("minio", "urllib3", "certifi"):
            raise
        raise ConfigError(
            f"the store `s3` needs the package `{package}`, which is not installed",
            remedy="Install Runyard with its extra: runyard[s3].",
        ) from error
    return open_s3(settings)
