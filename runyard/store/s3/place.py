"""Which bucket. Everything of it is known beforehand, so that signing asks nobody: the region too, which the
library would look up otherwise. A wrong one is told by the server, with the right one in its answer.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from minio.helpers import check_bucket_name

from runyard.errors import ConfigError, InvalidRequest
from runyard.settings import Settings
from runyard.store.base import check_key

_DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """``prefix`` is empty or ends with `/`; ``public_endpoint`` is where tasks reach the store."""

    endpoint: str
    bucket: str
    prefix: str = ""
    region: str = _DEFAULT_REGION
    public_endpoint: str = ""
    ca_file: Path | None = None

    def __str__(self) -> str:
        return f"the bucket `{self.bucket}` at {self.endpoint}"


def read_place(settings: Settings) -> Place:
    """The bucket of the settings. Raises ConfigError."""
    if not settings.s3_bucket:
        raise ConfigError("the store `s3` needs a bucket", remedy="Set RUNYARD_S3_BUCKET to its name.")
    try:
        check_bucket_name(settings.s3_bucket)
    except ValueError as error:
        raise ConfigError(str(error), remedy="Set RUNYARD_S3_BUCKET to the name of a bucket.") from error
    region = (
        settings.s3_region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or _DEFAULT_REGION
    )
    endpoint = _endpoint("RUNYARD_S3_ENDPOINT", settings.s3_endpoint or f"https://s3.{region}.amazonaws.com")
    public = settings.s3_public_endpoint
    return Place(
        endpoint=endpoint,
        bucket=settings.s3_bucket,
        prefix=_prefix(settings.s3_prefix),
        region=region,
        public_endpoint=_endpoint("RUNYARD_S3_PUBLIC_ENDPOINT", public) if public else endpoint,
        ca_file=_ca_file(settings.s3_ca_file),
    )


def _endpoint(name: str, address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{name} is no address: `{address}`", remedy="Give it as https://HOST or http://HOST:PORT."
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ConfigError(
            f"{name} has more than a host and a port",
            remedy="The bucket's name belongs into RUNYARD_S3_BUCKET, credentials into RUNYARD_S3_ACCESS_KEY.",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _prefix(prefix: str) -> str:
    if not prefix:
        return ""
    try:
        return check_key(prefix.removesuffix("/")) + "/"
    except InvalidRequest as error:
        raise ConfigError(
            f"RUNYARD_S3_PREFIX: {error.message}", remedy="Set it to a path such as `runyard/`."
        ) from error


def _ca_file(file: Path | None) -> Path | None:
    if file is not None and not os.access(file, os.R_OK):
        raise ConfigError(
            f"RUNYARD_S3_CA_FILE: {file} cannot be read",
            remedy="Give the path of a PEM file with the authority's certificate.",
        )
    return file
