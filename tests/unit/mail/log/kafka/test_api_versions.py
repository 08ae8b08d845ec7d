"""What a broker says of itself is read from the bytes of a real one, and no stranger's bytes are taken for a broker."""

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


def test_a_real_broker() -> None:
    greeting = decode_response(REAL)
    assert (greeting.release, greeting.finalized_release, greeting.is_upgrade_unfinished) == ("4.3", "4.3", False)
    assert greeting.finalized_features["transaction.version"] == 2


@pytest.mark.parametrize(
    ("known", "in_force", "release", "level", "is_behind"),
    [
        (30, 21, "4.3", "3.9", True),
        (26, 26, "4.1", "4.1", False),  # the first of the levels 4.1 has
        (31, 30, "after 4.3", "4.3", True),
        (None, None, "before 3.3", "before 3.3", False),
    ],
)
def test_releases(known: int | None, in_force: int | None, release: str, level: str, is_behind: bool) -> None:
    def features(number: int | None) -> dict[str, int]:
        return {} if number is None else {"metadata.version": number}

    greeting = ApiVersions(features(known), features(in_force))
    assert (greeting.release, greeting.finalized_release, greeting.is_upgrade_unfinished) == (release, level, is_behind)


def test_a_broker_before_2_4_answers_in_an_older_form() -> None:
    assert decode_response(REAL[:4] + struct.pack(">h", 35) + struct.pack(">i", 0)).release == "before 3.3"


@pytest.mark.parametrize("stranger", [b"220 mx.example.test ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\0\0\0\0"])
def test_a_stranger_is_known_by_his_first_bytes(stranger: bytes) -> None:
    with pytest.raises(NotABroker):
        response_size(stranger[:4])
    with pytest.raises(NotABroker):
        decode_response(stranger)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for answer in (data, REAL[:6] + data, REAL[: len(data)]):
        try:
            decode_response(answer)
        except NotABroker:
            continue


def test_every_answer_that_is_cut_off_is_refused_or_says_less() -> None:
    for length in range(len(REAL)):
        try:
            assert decode_response(REAL[:length]).finalized_release != "4.3"
        except NotABroker:
            continue


def test_the_question_says_how_long_it_is() -> None:
    asked = encode_request()
    assert response_size(asked[:4]) == len(asked) - 4 < RESPONSE_BYTES_MAX


@pytest.mark.parametrize(
    ("theirs", "apart"),
    [(100.5, 0.0), (101.0, 0.0), (103.5, 2.5), (99.9995, 0.0), (97.999, -2.0)],
)
def test_a_clock_is_wrong_only_as_far_as_the_answers_time_does_not_explain(theirs: float, apart: float) -> None:
    assert clock_offset(100.0, 101.0, theirs) == pytest.approx(apart)
