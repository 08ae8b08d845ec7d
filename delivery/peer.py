"""Key of outbound connections: deliveries share a connection only if their keys are equal."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class TlsPolicy(StrEnum):
    """How a connection is encrypted."""

    NONE = "none"


class PeerKey(Struct, frozen=True):
    """`source_address` None: any of `delivery.source_addresses`, in rotation. `credentials` None: no AUTH."""

    site: str
    source_address: None = None
    tls: TlsPolicy = TlsPolicy.NONE
    credentials: None = None
