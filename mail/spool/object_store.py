"""Construction of object stores with obstore, and error messages for operators.

Retries are few and short, because clients retry refused mail and the router retries deferred deliveries. Error texts
contain no secret and no response body.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from mail.settings_section import SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Credential

    from mail.settings import SpoolSettings
    from mail.spool.bucket_url import Bucket

_CONNECT = timedelta(seconds=3)
_RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=8),  # no retry starts later than this
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}

_STATUS = re.compile(r"status code: ([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_NO_CREDENTIALS = ("169.254.169.254", "169.254.170.", "metadata.google.internal")
_REFUSED_CODES = ("InvalidAccessKeyId", "XAdminUserNotFound", "SignatureDoesNotMatch", "AuthenticationFailed")


def open_store(bucket: Bucket, settings: SpoolSettings) -> ObjectStore:
    """The store at `bucket`, without a request. Raises SettingsError."""
    client: ClientConfig = {
        "connect_timeout": _CONNECT,
        "timeout": timedelta(hours=1),  # ObjectSpool sets a limit by the size of the request
        "allow_http": settings.allow_http,
    }
    prefix = bucket.prefix or None
    secret = settings.secret_key.get_secret_value()
    try:
        match bucket.scheme:
            case "s3":
                return _s3_store(bucket.name, prefix, settings, client)
            case "gs":
                return GCSStore(bucket.name, prefix=prefix, client_options=client, retry_config=_RETRIES)
            case _:
                options = {"account_name": settings.access_key, "account_key": secret, "endpoint": settings.endpoint}
                return AzureStore(
                    bucket.name,
                    prefix=prefix,
                    config={key: value for key, value in options.items() if value},  # type: ignore[arg-type]
                    client_options=client,
                    retry_config=_RETRIES,
                )
    except (BaseError, ValueError) as error:
        raise SettingsError(
            f'spool.url = "{bucket}": {_first_line(error)}: check spool.access_key, spool.secret_key and the '
            "provider's variables in the environment"
        ) from None


def _s3_store(name: str, prefix: str | None, settings: SpoolSettings, client: ClientConfig) -> S3Store:
    options = {"endpoint": settings.endpoint, "region": settings.region}
    secret = settings.secret_key.get_secret_value()

    def credentials() -> S3Credential:
        return {"access_key_id": settings.access_key, "secret_access_key": secret, "token": None, "expires_at": None}

    return S3Store(
        name,
        prefix=prefix,
        config={key: value for key, value in options.items() if value},  # type: ignore[arg-type]
        client_options=client,
        retry_config=_RETRIES,
        # As plain options they would be combined with a session token from the environment, which has other keys.
        credential_provider=credentials if settings.access_key else None,
    )


def describe_error(error: Exception) -> str:
    """The cause of a failed request and what to do, in one line."""
    if isinstance(error, TimeoutError):
        return "the store does not respond: check spool.endpoint and the network"
    text = str(error)
    code, status = (match[1] if (match := pattern.search(text)) else "" for pattern in (_CODE, _STATUS))
    if any(word in text for word in _NO_BUCKET):
        return "there is no such bucket: create it, or correct spool.url"
    if any(word in text for word in _NO_CREDENTIALS):
        return (
            "there are no credentials: set spool.access_key and spool.secret_key, or the provider's variables, or give "
            "this machine a role"
        )
    if (
        isinstance(error, PermissionDeniedError | UnauthenticatedError)
        or code in _REFUSED_CODES
        or status in ("401", "403")
    ):
        return (
            f"access denied ({code or status or 'no reason given'}): check spool.access_key and spool.secret_key (or "
            "the credentials in the environment), and their rights to list, read, write and delete objects"
        )
    if status:
        return f"the store replied {status}{f' {code}' if code else ''}: check spool.endpoint and the store's log"
    if "dns error" in text:
        return "the store's host name cannot be resolved: check spool.endpoint and DNS"
    if "ConnectionRefused" in text:
        return "connection refused: start the store, or correct spool.endpoint"
    if "InvalidCertificate" in text or "UnknownIssuer" in text:
        return "the store's certificate is not trusted: check spool.endpoint and the CA certificates of this machine"
    return f"{_first_line(error)}: check spool.endpoint and the network"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
