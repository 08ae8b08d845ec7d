"""Pure codec of ApiVersions requests and responses of Kafka's protocol.

aiokafka sends an older version without features and hides its errors. Brokers answer this request before
authentication, so it distinguishes a broker from another server; the feature `metadata.version` gives the release of
the broker (supported) and of the cluster (finalized). Source: Kafka's protocol guide, ApiVersions version 3 (KIP-511,
KIP-584), and `kafka-storage version-mapping`.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Schema, String, TaggedFields

RESPONSE_BYTES_MAX = 1 << 16
_API_KEY, _API_VERSION, _CORRELATION_ID = 18, 3, 1817
_UNSUPPORTED_VERSION = 35  # a broker before 2.4
_NAME = CompactString("utf-8")
_REQUEST = Schema(
    ("api_key", Int16),
    ("api_version", Int16),
    ("correlation_id", Int32),
    ("client_id", String("utf-8")),
    ("header_tags", TaggedFields),
    ("client_software_name", _NAME),
    ("client_software_version", _NAME),
    ("tags", TaggedFields),
)
_RESPONSE = Schema(  # after the correlation id and the error code
    ("api_keys", CompactArray(("api_key", Int16), ("min", Int16), ("max", Int16), ("tags", TaggedFields))),
    ("throttle_time_ms", Int32),
    ("tags", TaggedFields),
)
# Tag 0, supported features: minimum and maximum level. Tag 2, finalized features: maximum and minimum.
_FEATURES = CompactArray(("name", _NAME), ("first", Int16), ("second", Int16), ("tags", TaggedFields))
_METADATA_VERSION = "metadata.version"
# The last `metadata.version` of each release.
_LEVELS = (1, 2, 3, 7, 8, 11, 14, 19, 20, 21, 25, 27, 29, 30)
_RELEASES = ("3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4.0", "4.1", "4.2", "4.3")


class NotABroker(Exception):
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
    index = bisect_left(_LEVELS, level)
    return _RELEASES[index] if index < len(_RELEASES) else f"after {_RELEASES[-1]}"


def encode_request(client: str = "eilpost") -> bytes:
    """The request with its length prefix."""
    request = _REQUEST.encode((_API_KEY, _API_VERSION, _CORRELATION_ID, client, {}, client, client, {}))
    return b"".join((Int32.encode(len(request)), request))


def response_size(data: bytes) -> int:
    """Length of the response, from its first four bytes. Raises NotABroker."""
    (size,) = struct.unpack(">i", data)
    if not 4 <= size <= RESPONSE_BYTES_MAX:
        raise NotABroker("its first bytes are not a length")
    return int(size)


def decode_response(response: bytes) -> ApiVersions:
    """Decode the response without its length prefix. Raises NotABroker."""
    data = BytesIO(response)
    try:
        correlation_id, error_code = Int32.decode(data), Int16.decode(data)
        if correlation_id != _CORRELATION_ID or error_code not in (0, _UNSUPPORTED_VERSION):
            raise NotABroker("it answers another request")
        if error_code == _UNSUPPORTED_VERSION:
            return ApiVersions({}, {})
        _, _, tags = _RESPONSE.decode(data)
        supported = _FEATURES.decode(BytesIO(tags[0])) if 0 in tags else ()
        finalized = _FEATURES.decode(BytesIO(tags[2])) if 2 in tags else ()
    except (struct.error, ValueError):
        raise NotABroker("its answer cannot be read") from None
    return ApiVersions(
        {name: newest for name, _, newest, _ in supported or ()},
        {name: newest for name, newest, _, _ in finalized or ()},
    )
