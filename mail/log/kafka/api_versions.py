"""Pure codec of ApiVersions requests and responses of Kafka's protocol.

aiokafka sends an older version without features and hides its errors. Brokers answer this request before
authentication, so it distinguishes a broker from another server; the feature `metadata.version` gives the release of
the broker (supported) and of the cluster (finalized). Source: Kafka's protocol guide, ApiVersions version 3 (KIP-511,
KIP-584), and `kafka-storage version-mapping`.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

RESPONSE_BYTES_MAX = 1 << 16
_KEY, _VERSION, _CORRELATION = 18, 3, 1817
_UNSUPPORTED_VERSION = 35  # a broker before 2.4
_METADATA_VERSION = "metadata.version"
# The last `metadata.version` of each release.
_LEVELS = (1, 2, 3, 7, 8, 11, 14, 19, 20, 21, 25, 27, 29, 30)
_RELEASES = ("3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4.0", "4.1", "4.2", "4.3")


class NotABroker(ValueError):
    """The response is not that of a Kafka broker."""


@dataclass(frozen=True, slots=True)
class ApiVersions:
    """Newest level of each feature that the broker supports, and the level that the cluster uses."""

    supported_features: Mapping[str, int]
    finalized_features: Mapping[str, int]

    @property
    def release(self) -> str:
        """Release of the broker ("4.3"), or a range ("before 3.3")."""
        return _release(self.supported_features.get(_METADATA_VERSION))

    @property
    def finalized_release(self) -> str:
        """Release whose features the cluster uses."""
        return _release(self.finalized_features.get(_METADATA_VERSION))

    @property
    def is_upgrade_unfinished(self) -> bool:
        """Whether the cluster still uses the features of an older release."""
        return self.finalized_features.get(_METADATA_VERSION, 0) < self.supported_features.get(_METADATA_VERSION, 0)


def _release(level: int | None) -> str:
    if level is None:
        return "before 3.3"
    at = bisect_left(_LEVELS, level)
    return _RELEASES[at] if at < len(_RELEASES) else f"after {_RELEASES[-1]}"


def encode_request(client: str = "eilpost") -> bytes:
    """The request with its length prefix."""
    name = client.encode()
    header = struct.pack(">hhih", _KEY, _VERSION, _CORRELATION, len(name)) + name + b"\0"
    text = bytes([len(name) + 1]) + name
    body = header + text + text + b"\0"
    return struct.pack(">i", len(body)) + body


def response_size(data: bytes) -> int:
    """Length of the response, from its first four bytes. Raises NotABroker."""
    (size,) = struct.unpack(">i", data)
    if not 4 <= size <= RESPONSE_BYTES_MAX:
        raise NotABroker("its first bytes are not a length")
    return int(size)


def decode_response(response: bytes) -> ApiVersions:
    """Decode the response without its length prefix. Raises NotABroker."""
    try:
        correlation, error = struct.unpack_from(">ih", response)
        if correlation != _CORRELATION or error not in (0, _UNSUPPORTED_VERSION):
            raise NotABroker("it answers another request")
        return ApiVersions({}, {}) if error == _UNSUPPORTED_VERSION else _Decoder(response, 6).decode()
    except (struct.error, IndexError, UnicodeDecodeError):
        raise NotABroker("its answer cannot be read") from None


class _Decoder:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._position = at

    def decode(self) -> ApiVersions:
        supported: dict[str, int] = {}
        finalized: dict[str, int] = {}
        for _ in range(self._read_array_length()):  # api key, least and greatest version: aiokafka checks them itself
            self._read_struct(">hhh")
            self._skip_tags()
        self._read_struct(">i")  # throttle time
        for tag, end in self._read_tags():
            if tag == 0:
                supported = {name: most for name, _, most in self._read_features()}
            elif tag == 2:
                finalized = {name: most for name, most, _ in self._read_features()}
            self._position = end
        return ApiVersions(supported, finalized)

    def _read_features(self) -> Iterator[tuple[str, int, int]]:
        for _ in range(self._read_array_length()):
            length = self._read_varint() - 1
            name = self._data[self._position : self._position + length].decode()
            self._position += length
            first, second = self._read_struct(">hh")
            self._skip_tags()
            yield name, first, second

    def _read_tags(self) -> Iterator[tuple[int, int]]:
        """Number and end position of each tagged field."""
        for _ in range(self._read_varint()):
            tag, size = self._read_varint(), self._read_varint()
            yield tag, self._position + size

    def _skip_tags(self) -> None:
        for _, end in self._read_tags():
            self._position = end

    def _read_array_length(self) -> int:
        return max(0, self._read_varint() - 1)

    def _read_struct(self, form: str) -> tuple[int, ...]:
        numbers = struct.unpack_from(form, self._data, self._position)
        self._position += struct.calcsize(form)
        return numbers

    def _read_varint(self) -> int:
        number = shift = 0
        while shift < 35:
            byte = self._data[self._position]
            self._position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
        raise NotABroker("its answer cannot be read")
