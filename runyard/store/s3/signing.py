"""Presigned URLs: what a program without credentials may do, to which keys and until when.

They are computed here, nobody is asked. They name the address at which tasks reach the store, which may be
another one than ours; it is part of the signature.
"""

from datetime import UTC, datetime, timedelta

import urllib3
from minio.datatypes import PostPolicy

from runyard.store.base import UrlTarget
from runyard.store.s3.bucket import open_client
from runyard.store.s3.credentials import AtHand, Kept
from runyard.store.s3.place import Place

LONGEST_S = 7 * 24 * 3600
"""The longest that a signature (SigV4) may be good."""

_LARGEST = 5 << 30
"""Bytes of an object that one request may bring."""

STARTED = "started"


class Signer:
    def __init__(self, place: Place, credentials: Kept, http: urllib3.PoolManager) -> None:
        self._place = place
        self._credentials = credentials
        self._client = open_client(place.public_endpoint or place.endpoint, place, AtHand(credentials), http)

    def target(self, prefix: str, *, expires_s: float) -> UrlTarget:
        """Any number of POSTs below ``prefix``, and the PUT of its object `started`."""
        good_s, prefix = self._good_s(expires_s), self._place.prefix + prefix
        until = datetime.now(UTC) + timedelta(seconds=good_s)
        policy = PostPolicy(self._place.bucket, until)
        policy.add_starts_with_condition("key", prefix)
        policy.add_content_length_range_condition(0, _LARGEST)
        fields = self._client.presigned_post_policy(policy)
        # the library has no name for the address of a POST: it is that of an object, without the object
        address = self._url("PUT", "x", 1).partition("?")[0].removesuffix("x")
        claim = self._url("PUT", prefix + STARTED, good_s)
        return UrlTarget(url=address, prefix=prefix, fields=fields, claim=claim, expires_at=until)

    def source(self, key: str, *, expires_s: float) -> str:
        return self._url("GET", self._place.prefix + key, self._good_s(expires_s))

    def _url(self, method: str, key: str, good_s: int) -> str:
        return self._client.get_presigned_url(method, self._place.bucket, key, timedelta(seconds=good_s))

    def _good_s(self, expires_s: float) -> int:
        return max(1, int(min(expires_s, LONGEST_S, self._credentials.left_s())))
