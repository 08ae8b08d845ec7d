"""Frame codec: golden frames of every version, round trips, and detection of damage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mail.address import Address
from mail.log.codec import FrameError, decode, encode
from mail.message import Inline
from mail.outcome import Failed
from mail.record import (
    Accepted,
    Attempted,
    Dispatched,
    Event,
    EventDetail,
    QueueEntry,
    QueueTombstone,
    Record,
)
from mail.reply import Reply
from mail.route import ToMx
from tests.support.builders.records import ALICE, CONTENT, GOLDEN, NOON, accepted, attempted, message

FRAMES = Path(__file__).parents[3] / "golden"

# Any text of a remote server, with astral and control characters; lone surrogates have their own test.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TIMES = st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001 - hypothesis adds the zone
    lambda time: time.replace(fold=0)
)
DURATIONS = st.timedeltas(timedelta(0), timedelta(days=100))
NUMBERS = st.integers(0, 2**53)
ADDRESSES = st.builds(Address, TEXTS, TEXTS)
REPLIES = st.builds(
    lambda code, subject, text: Reply(code, f"{code // 100}.{subject}.1" if subject else "", text),
    st.sampled_from([250, 421, 450, 550]),
    st.integers(0, 999),
    TEXTS,
)
for kind, strategy in (
    (str, TEXTS),
    (int, NUMBERS),
    (bytes, st.binary(max_size=200)),
    (datetime, TIMES),
    (timedelta, DURATIONS),
    (Address, ADDRESSES),
    (Reply, REPLIES),
    (ToMx, st.builds(ToMx, TEXTS, st.lists(st.tuples(st.integers(0, 65535), TEXTS), max_size=3).map(tuple))),
):
    st.register_type_strategy(kind, strategy)

KINDS: tuple[type, ...] = (Accepted, Dispatched, Attempted, QueueEntry, Event)


@pytest.mark.parametrize("version", [1, 2])
def test_every_kind_and_variant_has_a_golden_file(version: int) -> None:
    shown = {type(record) for record in GOLDEN.values()} | {QueueTombstone}
    assert shown == set(get_args(Record))
    assert {type(e.detail) for e in GOLDEN.values() if isinstance(e, Event)} == set(get_args(EventDetail))
    assert {path.stem for path in FRAMES.glob(f"version-{version}/*.frame")} == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_frames_of_version_1_stay_readable(name: str) -> None:
    frame = (FRAMES / "version-1" / f"{name}.frame").read_bytes()
    assert decode(frame, type(GOLDEN[name])) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_frames_of_version_2_stay_readable(name: str) -> None:
    frame = (FRAMES / "version-2" / f"{name}.frame").read_bytes()
    assert decode(frame, type(GOLDEN[name])) == GOLDEN[name]
    assert encode(GOLDEN[name]) == frame  # encoding has not changed


@pytest.mark.parametrize("path", sorted(FRAMES.glob("version-2-shorter/*.frame")), ids=lambda path: path.stem)
def test_frames_of_version_2_without_later_fields_stay_readable(path: Path) -> None:
    """Written before `asked` and `reason` were added."""
    assert decode(path.read_bytes(), type(GOLDEN[path.stem])) == GOLDEN[path.stem]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["accepted-inline", "dispatched-inline"])
def test_separately_stored_content_is_part_of_the_decoded_record(version: int, name: str) -> None:
    record = GOLDEN[name]
    frame = (FRAMES / f"version-{version}" / f"{name}.frame").read_bytes()
    assert decode(frame, type(record), b"other") == replace(record, content=Inline(b"other"))
    bare = encode(record, without_content=True) or b""
    assert not bare.endswith(CONTENT)
    assert decode(bare, type(record), CONTENT) == record


def test_settled_is_a_tombstone() -> None:
    assert encode(QueueTombstone(attempted().delivery_id)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_decode_returns_the_encoded_record(kind: type) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.from_type(kind))
    def round_trips(record: Record) -> None:
        frame = encode(record)
        assert frame is not None
        assert decode(frame, kind) == record

    round_trips()


def test_content_is_raw_in_the_frame() -> None:
    content = bytes(range(256)) * 4
    frame = encode(accepted(content=content))
    assert frame is not None
    assert frame.endswith(content)


def test_time_zones_are_encoded_as_the_same_instant() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    record = Accepted(replace(message(), received=local), Inline(b""))
    assert decode(encode(record) or b"", Accepted) == record


def test_lone_surrogates_in_a_reply_are_encoded_as_question_marks() -> None:
    odd = Reply(550, "5.1.1", "caf\udce9")
    record = Attempted(attempted().delivery_id, 1, (Failed(ALICE, odd),), NOON, timedelta(0))
    again = decode(encode(record) or b"", Attempted)
    assert again.outcomes[0].reply.text == "caf?"


@pytest.mark.parametrize("name", GOLDEN)
def test_a_truncated_frame_raises_frame_error(name: str) -> None:
    frame = encode(GOLDEN[name]) or b""
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            decode(frame[:end], type(GOLDEN[name]))
    with pytest.raises(FrameError, match="bytes"):
        decode(frame + b"x", type(GOLDEN[name]))


@pytest.mark.parametrize("name", ["accepted-inline", "attempted-mixed", "queue-entry-held"])
def test_every_flipped_bit_raises_frame_error(name: str) -> None:
    frame = encode(GOLDEN[name]) or b""
    for place in range(len(frame)):
        if place == 3:  # the reserved byte is ignored
            continue
        for bit in (1, 128):
            damaged = bytearray(frame)
            damaged[place] ^= bit
            with pytest.raises(FrameError):
                decode(bytes(damaged), type(GOLDEN[name]))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_frame_error(noise: bytes) -> None:
    with pytest.raises(FrameError):
        decode(noise, Event)


def test_an_unknown_version_is_named_in_the_error() -> None:
    frame = bytearray(encode(accepted()) or b"")
    frame[2] = 9
    with pytest.raises(FrameError, match="version is 9"):
        decode(bytes(frame), Accepted)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_another_kind_raises_frame_error(kind: type, version: int) -> None:
    """Of another topic, written by another program."""
    for name, record in GOLDEN.items():
        if not isinstance(record, kind):
            with pytest.raises(FrameError, match="its header cannot be read"):
                decode((FRAMES / f"version-{version}" / f"{name}.frame").read_bytes(), kind)
