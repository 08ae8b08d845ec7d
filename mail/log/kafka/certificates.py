"""TLS context of the connections to the brokers, reloaded when its files change (`log.tls_ca`, `tls_cert`, `tls_key`).

New connections use the reloaded files; open connections keep theirs. A new pair that is unusable or expired is logged
and retried at each poll, and the loaded pair stays in use. A removed authority is trusted until the process ends.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from mail.log import LogUnusable
from mail.log.kafka.timeouts import TIMEOUTS
from mail.settings import LogSettings
from mail.tasks import periodically
from mail.telemetry.runtime import CERTIFICATE_EXPIRY

logger = structlog.get_logger()

RENEW_BEFORE = timedelta(days=14)  # /readyz and doctor warn; EilpostCertificateExpiresSoon has the same limit

_FilesState = tuple[tuple[int, int, int], ...]  # time, inode and size of each file; zeros: missing


class Certificates:
    """Certificates of one process. Raises LogUnusable for files that cannot be used."""

    def __init__(self, settings: LogSettings) -> None:
        self._ca, self._certificate, self._key = settings.tls_ca, settings.tls_cert, settings.tls_key or None
        self._loaded = self._files_state()
        self._last_seen = self._loaded
        self._problem = ""  # why the last reload failed
        self.context = self._new_context()
        self.expires = self._expiry()
        self._export_expiry()

    async def watch(self) -> None:
        """Reload changed files until cancelled."""
        await periodically(TIMEOUTS.watch_seconds, self._check, "certificates not checked, the loaded ones stay in use")

    async def _check(self) -> None:
        """Files must be equal in two checks, because a pair is written in two steps."""
        state = await asyncio.to_thread(self._files_state)
        if state == self._loaded:
            self._problem = ""
        elif state == self._last_seen:
            self._load(already_logged=self._problem)
        self._last_seen = state

    async def reload(self) -> None:
        """Reload the files now."""
        self._load()

    def _load(self, *, already_logged: str = "") -> None:
        """A failure is logged unless it equals `already_logged`, because each poll retries."""
        state = self._files_state()
        try:
            self._new_context()  # a mismatched pair would replace half of the live context's pair
            expires = self._next_expiry()
            self._load_pair(self.context)
            if self._ca:
                self.context.load_verify_locations(self._ca)
            self.expires = expires
            self._export_expiry()
        except (LogUnusable, OSError) as error:
            self._problem = str(error)
            if self._problem != already_logged:
                logger.error("certificates not reloaded, the loaded ones stay in use", error=self._problem)  # noqa: TRY400
        else:
            self._loaded, self._problem = state, ""
            logger.info("certificates reloaded", certificate=self._certificate, authority=self._ca)

    def warnings(self) -> Sequence[str]:
        """A text when the loaded certificate has expired or expires soon."""
        now = datetime.now(UTC)
        if self.expires is None or self.expires - now > RENEW_BEFORE:
            return ()
        verb = "expired" if self.expires <= now else "expires"
        return (f"log.tls_cert: the loaded certificate {verb} on {self.expires:%Y-%m-%d}: renew it",)

    def _files_state(self) -> _FilesState:
        return tuple(_file_state(path) for path in (self._ca, self._certificate, self._key) if path)

    def _new_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca or None)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise LogUnusable(
                f"log.tls_ca: {self._ca}: {_error_text(error)}; name a file of PEM certificates"
            ) from None
        self._load_pair(context)
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        if not self._certificate:
            return
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # else OpenSSL asks the terminal
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise LogUnusable(
                f"log.tls_cert, log.tls_key: {self._certificate}: {_error_text(error)}; name the PEM files of a"
                " certificate and its key"
            ) from None

    def _expiry(self) -> datetime | None:
        return expiry(Path(self._certificate)) if self._certificate else None

    def _next_expiry(self) -> datetime | None:
        """Expiry of the new pair; raises LogUnusable when it has expired and the loaded one has not."""
        expires, now = self._expiry(), datetime.now(UTC)
        if expires is not None and expires <= now and self.expires is not None and self.expires > now:
            raise LogUnusable(f"log.tls_cert: {self._certificate}: expired on {expires:%Y-%m-%d}; renew it")
        return expires

    def _export_expiry(self) -> None:
        if self.expires is not None:
            CERTIFICATE_EXPIRY.labels("kafka").set(self.expires.timestamp())


def expiry(path: Path) -> datetime:
    """Expiry of the first certificate of a PEM file. Raises LogUnusable."""
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificate  # takes 30 ms

    try:
        return load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError, InvalidVersion) as error:
        raise LogUnusable(f"log.tls_cert: {path}: {_error_text(error)}; name a file of PEM certificates") from None


def _file_state(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size


def _error_text(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
