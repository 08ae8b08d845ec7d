"""Key of outbound connections: deliveries share a connection only if their keys are equal."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from mail.reply import Reply

# RFC 3463 section 3.8: X.7.4 security features not supported.
TLS_NOT_AVAILABLE = Reply(451, "4.7.4", "TLS is required, and this version has no STARTTLS")
AUTH_NOT_AVAILABLE = Reply(451, "4.7.4", "Authentication is required, and this version has no AUTH")


class TlsPolicy(StrEnum):
    """How a connection is encrypted."""

    NONE = "none"
    OPPORTUNISTIC = "opportunistic"  # in clear if TLS is not available
    REQUIRE = "require"


class Credentials(Struct, frozen=True):
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"


class PeerKey(Struct, frozen=True):
    """What deliveries need of a connection. It comes from one of `source_addresses`, in rotation; () leaves the choice
    to the system. Which one is not part of the key, because it follows the address family of the server.
    """

    site: str
    ehlo_name: str
    source_addresses: tuple[str, ...] = ()
    tls: TlsPolicy = TlsPolicy.NONE
    credentials: Credentials | None = None


def refuse_clear_text(tls: TlsPolicy, credentials: Credentials | None) -> Reply | None:
    """Why mail must not be sent over a connection without TLS and AUTH; None: it may be."""
    match tls:
        case TlsPolicy.REQUIRE:
            return TLS_NOT_AVAILABLE
        case TlsPolicy.NONE | TlsPolicy.OPPORTUNISTIC:
            return None if credentials is None else AUTH_NOT_AVAILABLE
        case _:
            assert_never(tls)
