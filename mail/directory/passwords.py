"""Password verification with argon2 in a small thread pool, with equal duration for known and unknown users.

A verified password is cached for one minute as a hash keyed with a random key of the process; plain text is not stored.
Source: RFC 9106 (argon2), parameters of argon2-cffi's low-memory profile (19 MiB, t=2, p=1).
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from hashlib import blake2b

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError
from cachetools import TTLCache

from mail.directory import DirectoryUnavailable, User

CACHE_TTL = timedelta(seconds=60)
CONCURRENT_CHECKS_MAX = 200  # further checks are refused, so that clients do not wait for minutes
PASSWORD_MAX_BYTES = 1024  # longer passwords are wrong: hashing megabytes would allow a denial of service

_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# Verified for unknown users; same parameters, so that it takes the same time.
_DUMMY_HASH = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBzYWx0IG9mIG91cnM$5q0dOwM8s2jgc0kXnxkpJ6FfLSWfE5fJMhhSVpyFh4E"


def hash_password(password: str) -> str:
    """The argon2id hash for the directory file; takes about 50 ms."""
    return _hasher.hash(password)


def is_hash(text: str) -> bool:
    """Whether `text` is an argon2 hash."""
    try:
        extract_parameters(text)
    except InvalidHashError:
        return False
    return True


class PasswordChecker:
    """Checks passwords in its own thread pool."""

    def __init__(self, threads: int | None = None) -> None:
        count = threads or max(1, min(4, os.cpu_count() or 1))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="argon2")
        self._checks = 0
        self._key = os.urandom(32)
        self._verified: TTLCache[bytes, None] = TTLCache(10_000, CACHE_TTL.total_seconds())

    async def check(self, user: User | None, password: str, timeout: timedelta) -> bool:
        """Whether `password` is the password of `user`; for None False after the same time. Raises
        DirectoryUnavailable when the check does not finish within `timeout`.
        """
        octets = password.encode("utf-8", "surrogatepass")
        stored = user.password if user is not None else ""
        cache_key = blake2b(octets + b"\0" + stored.encode(), key=self._key, digest_size=32).digest()
        if stored and cache_key in self._verified:
            return True
        if self._checks >= CONCURRENT_CHECKS_MAX:
            raise DirectoryUnavailable("too many password checks at once")
        if len(octets) > PASSWORD_MAX_BYTES:
            octets, stored = b"", ""
        self._checks += 1
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                matches = await asyncio.get_running_loop().run_in_executor(
                    self._threads, _verify, stored or _DUMMY_HASH, octets
                )
        except TimeoutError as error:
            raise DirectoryUnavailable("the password check timed out") from error
        finally:
            self._checks -= 1
        if matches and stored:
            self._verified[cache_key] = None
        return matches and bool(stored)

    async def close(self) -> None:
        """Stop the threads. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)


def _verify(stored: str, password: bytes) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return False
