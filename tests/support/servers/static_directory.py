"""Static directory for tests. Passwords are plain text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from mail.directory import DirectoryUnavailable, Snapshot, User
from mail.directory.file import find_user


class StaticDirectory:
    """`passwords` by `Address.key`. A test may replace `snapshot`, or set `is_down` to make `authenticate` fail."""

    def __init__(self, snapshot: Snapshot, passwords: Mapping[str, str] | None = None) -> None:
        self.snapshot = snapshot
        self.passwords = dict(passwords or {})
        self.is_down = False

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def authenticate(
        self, login: str, password: str, *, timeout: timedelta = timedelta(seconds=10)
    ) -> User | None:
        if self.is_down or timeout <= timedelta(0):
            raise DirectoryUnavailable("the static directory is set to be down")
        user = find_user(self.snapshot, login)
        return user if user is not None and self.passwords.get(user.address.key) == password else None
