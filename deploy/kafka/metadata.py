"""Metadata request to a broker, without a client library.

Version 1 (Kafka 0.10 to 4.x), for no topic. A broker that responds serves clients, and its response lists the brokers
that the controller counts as alive.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

_METADATA, _VERSION, _CORRELATION = 3, 1, 7


def live_brokers(port: int, *, host: str = "127.0.0.1", timeout_seconds: float = 2.0) -> Mapping[int, int]:
    """Port by id of each broker that the one at `port` lists as alive; empty when it does not respond."""
    client = b"eilpost-metadata"
    request = struct.pack(">hhih", _METADATA, _VERSION, _CORRELATION, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds) as peer:
            peer.settimeout(timeout_seconds)
            peer.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", _receive_exactly(peer, 4))
            return _parse(_receive_exactly(peer, min(length, 1_000_000)))
    except (OSError, struct.error, EOFError):
        return {}


def _receive_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _parse(response: bytes) -> Mapping[int, int]:
    """Correlation id, then an array of (id, host, port, rack or null); the rest is ignored."""
    correlation, count = struct.unpack_from(">ii", response)
    if correlation != _CORRELATION:
        return {}
    brokers, position = {}, 8
    for _ in range(count):
        broker_id, host_length = struct.unpack_from(">ih", response, position)
        position += 6 + host_length
        port, rack_length = struct.unpack_from(">ih", response, position)
        position += 6 + max(rack_length, 0)
        brokers[broker_id] = port
    return brokers
