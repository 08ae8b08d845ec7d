"""Parser of object spool URLs ("s3://BUCKET/PREFIX") and checks of the settings that belong to them. Pure.

`ObjectSpool.start` checks that the bucket exists and is writable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mail.masking import masked

if TYPE_CHECKING:
    from mail.settings import SpoolSettings

SCHEMES = {
    "s3": '"s3://BUCKET/PREFIX"',  # Amazon S3 and compatible stores
    "gs": '"gs://BUCKET/PREFIX"',  # Google Cloud Storage
    "az": '"az://CONTAINER/PREFIX"',  # Azure Blob Storage
}

_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(.*))?\Z", re.DOTALL)
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_ENDPOINT = re.compile(r"(https?)://[A-Za-z0-9.:_\[\]-]+(?:/[A-Za-z0-9._/-]*)?\Z")


@dataclass(frozen=True, slots=True)
class Bucket:
    scheme: str
    name: str
    prefix: str  # without leading and trailing slash; may be empty

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}" + (f"/{self.prefix}" if self.prefix else "")


def parse_bucket(url: str) -> Bucket:
    """Raises ValueError with the expected form."""
    match = _URL.match(url)
    if match is None:
        expected = SCHEMES.get(url.partition(":")[0], " or ".join(SCHEMES.values()))
        raise ValueError(f"{expected} is expected, with a bucket name of 3 to 63 letters, digits, dots and dashes")
    prefix = (match[3] or "").rstrip("/")
    if prefix and not _PREFIX.match(prefix):
        raise ValueError(
            "a prefix of letters, digits and ._- is expected, with single slashes and no dot after a slash"
        )
    return Bucket(match[1], match[2], prefix)


def setting_errors(settings: SpoolSettings) -> Iterator[tuple[str, str]]:
    """Errors in the settings of an object spool, as (key, error)."""
    scheme = settings.url.partition(":")[0]
    if scheme not in SCHEMES:
        return
    if scheme != "s3" and settings.region:
        yield "region", f'found "{masked(settings.region)}"; only s3:// has regions; leave it empty'
    elif settings.region and not _REGION.match(settings.region):
        yield "region", f'found "{masked(settings.region)}"; the name of a region is expected, like "eu-central-1"'
    if scheme == "gs":
        for key in ("endpoint", "access_key", "secret_key"):
            if getattr(settings, key):
                yield key, "gs:// uses the credentials in GOOGLE_APPLICATION_CREDENTIALS; leave it empty"
        return
    for key, other in (("access_key", "secret_key"), ("secret_key", "access_key")):
        if getattr(settings, other) and not getattr(settings, key):
            yield key, f"is missing while spool.{other} is set; set both, or neither for the provider's default"
    if settings.endpoint:
        match = _ENDPOINT.match(settings.endpoint)
        if match is None:  # not quoted: it may contain a password
            yield "endpoint", '"https://HOST" or "http://HOST:PORT" is expected, without user and query'
        elif match[1] == "http" and not settings.allow_http:
            yield (
                "endpoint",
                f'found "{masked(settings.endpoint)}"; mail would cross the network unencrypted: use https://, '
                "or set spool.allow_http = true if the network is trusted",
            )
