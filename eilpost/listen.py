"""Settings of the listening addresses, and a test whether an address can be bound."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from mail.endpoint import parse
from mail.settings import Settings


class ListenSetting(NamedTuple):
    """`name` is in the log line of a ready process."""

    name: str
    section: str
    key: str

    def __str__(self) -> str:
        return f"{self.section}.{self.key}"

    def address(self, settings: Settings) -> str:
        """Empty: not served."""
        return str(getattr(getattr(settings, self.section), self.key))


INGRESS = ListenSetting("smtp", "ingress", "smtp_listen")
POP3 = ListenSetting("pop3", "mailstore", "pop3_listen")
HTTP = ListenSetting("http", "http", "listen")


def bind_error(address: str) -> OSError | None:
    """Bind the address for a moment."""
    try:
        host, port = parse(address)
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(info[0]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(info[4])
    except OSError as error:
        return error
    return None


def is_in_use(address: str) -> bool:
    error = bind_error(address)
    return error is not None and error.errno == errno.EADDRINUSE
