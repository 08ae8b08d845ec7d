"""ApiVersions codec: the response of a real broker is decoded, and other bytes are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.log.kafka.api_versions import (
    RESPONSE_BYTES_MAX,
    ApiVersions,
    NotABroker,
    decode_response,
    encode_request,
    response_size,
)
from mail.log.kafka.probe import clock_offset

REAL = (Path(__file__).resolve().parents[4] / "golden" / "kafka-4.3.1.greeting").read_bytes()


def test_the_response_of_a_real_broker_is_decoded() -> None:
    versions = decode_response(REAL)
    assert (versions.release, versions.finalized_release, versions.is_upgrade_unfinished) == ("4.3", "4.3", False)
    assert versions.finalized_features["transaction.version"] == 2


@pytest.mark.parametrize(
    ("known", "in_force", "release", "level", "is_behind"),
    [
        (30, 21, "4.3", "3.9", True),
        (26, 26, "4.1", "4.1", False),  # the first level of 4.1
        (31, 30, "after 4.3", "4.3", True),
        (None, None, "before 3.3", "before 3.3", False),
    ],
)
def test_feature_levels_name_the_release(
    known: int | None, in_force: int | None, release: str, level: str, is_behind: bool
) -> None:
    def features(number: int | None) -> dict[str, int]:
        return {} if number is None else {"metadata.version": number}

    versions = ApiVersions(features(known), features(in_force))
    assert (versions.release, versions.finalized_release, versions.is_upgrade_unfinished) == (release, level, is_behind)


def test_the_error_response_of_a_broker_before_2_4_is_decoded() -> None:
    assert decode_response(REAL[:4] + struct.pack(">h", 35) + struct.pack(">i", 0)).release == "before 3.3"


@pytest.mark.parametrize("other", [b"220 mx.example.test ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\0\0\0\0"])
def test_another_protocol_is_refused_by_its_first_bytes(other: bytes) -> None:
    with pytest.raises(NotABroker):
        response_size(other[:4])
    with pytest.raises(NotABroker):
        decode_response(other)


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for answer in (data, REAL[:6] + data, REAL[: len(data)]):
        try:
            decode_response(answer)
        except NotABroker:
            continue


def test_a_truncated_response_is_refused_or_has_fewer_features() -> None:
    for length in range(len(REAL)):
        try:
            assert decode_response(REAL[:length]).finalized_release != "4.3"
        except NotABroker:
            continue


def test_the_request_begins_with_its_length() -> None:
    request = encode_request()
    assert response_size(request[:4]) == len(request) - 4 < RESPONSE_BYTES_MAX


@pytest.mark.parametrize(
    ("broker_time", "offset"),
    [(100.5, 0.0), (101.0, 0.0), (103.5, 2.5), (99.9995, 0.0), (97.999, -2.0)],
)
def test_clock_offset_excludes_the_request_time(broker_time: float, offset: float) -> None:
    assert clock_offset(100.0, 101.0, broker_time) == pytest.approx(offset)
