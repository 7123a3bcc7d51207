"""Who we are to the store: from the settings, else from where other programs for S3 look too.

Which way it is, is decided once, at the start, and said when there is none: a chain that silently falls through
to the next way tells "access denied" where a variable was misspelt. The machine's own role is asked for only on
request, since on a machine without one that question is answered by a long silence.

Temporary credentials are renewed well ahead of their end, by whatever request comes then; and a presigned URL,
which must not ask anybody, is signed with what is at hand.
"""

import os
import threading
import time
from collections.abc import Callable
from configparser import Error as FileError
from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import ParseError

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    IamAwsProvider,
    Provider,
    StaticProvider,
)

from runyard.errors import ConfigError, StoreDenied, StoreUnavailable
from runyard.settings import Settings

_AHEAD_S = 600
"""Renewed so long before the end …"""

_FRESH_S = 60
"""… and where no end is known looked at again so often, since a file may be written anew at any time."""

_ROLE = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class Kept(Provider):
    """Credentials that are renewed ahead of their end, by one thread at a time."""

    def __init__(self, make: Callable[[], Provider], source: str) -> None:
        self._make = make
        self._source = source
        self._lock = threading.Lock()
        self._kept: Credentials | None = None
        self._look_at = 0.0

    def retrieve(self) -> Credentials:
        """Those at hand, or new ones where it is time. Raises StoreDenied, StoreUnavailable."""
        kept = self._kept
        if kept is not None and time.monotonic() < self._look_at:
            return kept
        if not self._lock.acquire(blocking=not self.is_valid()):
            return self.current()  # another thread is at it, and these are still good
        try:
            return self._renew()
        finally:
            self._lock.release()

    def current(self) -> Credentials:
        """Those at hand; only where there are none, or none that are valid, they are asked for."""
        kept = self._kept
        return kept if kept is not None and self.is_valid() else self.retrieve()

    def is_valid(self) -> bool:
        return self._kept is not None and _left_s(self._kept) > 0

    def left_s(self) -> float:
        """How long those at hand are good."""
        return _left_s(self.current())

    def _renew(self) -> Credentials:
        if self._kept is not None and time.monotonic() < self._look_at:
            return self._kept  # another thread was first
        try:
            found = self._make().retrieve()
        except (ValueError, FileError, OSError, ParseError, urllib3.exceptions.HTTPError) as error:
            if self._kept is not None and self.is_valid():
                self._look_at = time.monotonic() + _FRESH_S
                return self._kept
            raise self._failed(error) from error
        self._kept = found
        self._look_at = time.monotonic() + _good_for_s(found)
        return found

    def _failed(self, error: Exception) -> StoreDenied | StoreUnavailable:
        said = f"credentials for the store cannot be had from {self._source}: {str(error)[:200]}"
        if isinstance(error, urllib3.exceptions.HTTPError):
            return StoreUnavailable(said, remedy="See that this address answers; it is tried again by itself.")
        return StoreDenied(said, remedy="See that what is named there is right; it is looked at again by itself.")


class AtHand(Provider):
    """The credentials of another provider, without asking for new ones while the present are good."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def retrieve(self) -> Credentials:
        return self._kept.current()


def open_credentials(settings: Settings, http: urllib3.PoolManager) -> Kept:
    """The way that the settings and the environment name. Raises ConfigError where they name none."""
    if settings.s3_access_key:
        key, secret = settings.s3_access_key, settings.s3_secret_key.get_secret_value()
        if not secret:
            raise ConfigError(
                "RUNYARD_S3_ACCESS_KEY is set, its secret is not", remedy="Set RUNYARD_S3_SECRET_KEY."
            )
        token = settings.s3_session_token.get_secret_value() or None
        return Kept(lambda: StaticProvider(key, secret, token), "the settings")
    if settings.s3_credentials_file is not None:
        return _file(settings.s3_credentials_file)
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return Kept(EnvAWSProvider, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if settings.s3_machine_role or any(os.environ.get(name) for name in _ROLE):
        sts = settings.s3_sts_endpoint or os.environ.get("AWS_ENDPOINT_URL_STS") or None
        source = "this machine's role" if settings.s3_machine_role else "the role that AWS_… variables name"
        return Kept(lambda: IamAwsProvider(custom_endpoint=sts, http_client=http), source)
    usual = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    if usual.exists():
        return _file(usual)
    raise ConfigError(
        "there are no credentials for the store",
        remedy="Set RUNYARD_S3_ACCESS_KEY and RUNYARD_S3_SECRET_KEY, or RUNYARD_S3_CREDENTIALS_FILE, or the AWS_… "
        "variables of a key or a role, or RUNYARD_S3_MACHINE_ROLE=1.",
    )


def _file(file: Path) -> Kept:
    return Kept(lambda: AWSConfigProvider(str(file)), str(file))


def _good_for_s(found: Credentials) -> float:
    """How long these are taken as they are."""
    if found.expiration is None:
        return _FRESH_S
    return max(min(_FRESH_S, _left_s(found)), _left_s(found) - _AHEAD_S)


def _left_s(credentials: Credentials) -> float:
    if credentials.expiration is None:
        return float("inf")
    return (credentials.expiration.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
