"""Values: replies, units, queue ids, topics and keys of records, endpoints."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail import endpoint
from mail.envelope import Envelope
from mail.log.topics import (
    ACCEPTED,
    ALL_TOPICS,
    ATTEMPTED,
    DISPATCHED,
    EVENTS,
    QUEUE,
    Place,
    ShardCounts,
    place,
    shard_of,
)
from mail.message import (
    Inline,
    Message,
    QueueId,
    delivery_id,
    derived_queue_id,
    make_queue_id,
    queue_id_of,
    queue_id_time,
)
from mail.queue_id import _MonotonicGenerator, new_queue_id
from mail.record import Accepted, Active, Attempted, Closed, Delivery, Dispatched, Event, QueueEntry, QueueTombstone
from mail.reply import Reply
from mail.route import RelayProtocol, ToMailbox, ToMx, ToRelay, Unresolved
from mail.units import format_duration, format_size, parse_duration, parse_size

_NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


# Replies.


def test_reply_of_two_lines_is_formatted() -> None:
    reply = Reply(550, "5.1.1", "No such user\nhere")
    assert reply.to_bytes() == b"550-5.1.1 No such user\r\n550 5.1.1 here\r\n"
    assert str(reply) == "550 5.1.1 No such user here"
    assert (reply.is_positive, reply.is_temporary, reply.is_permanent) == (False, False, True)
    assert Reply(354, "", "Go ahead").to_bytes() == b"354 Go ahead\r\n"
    assert Reply(451, "", "Later").status == "4.0.0"


@given(st.text() | st.text(st.sampled_from("\r\n\0\x0b\x0c\x1c\x85\u2028\x7f a5.-")))
def test_reply_text_cannot_inject_a_line(text: str) -> None:
    wire = Reply(550, "5.7.1", text).to_bytes()
    lines = wire.split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) == text.count("\n") + 1
    for number, line in enumerate(lines):
        assert line.startswith(b"550 5.7.1 " if number == len(lines) - 1 else b"550-5.7.1 ")
        assert not any((octet < 32 and octet != 9) or octet == 127 for octet in line)
    assert "\n" not in str(Reply(550, "5.7.1", text))
    assert "\r" not in str(Reply(550, "5.7.1", text))


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(199, ""), (600, ""), (550, "4.1.1"), (250, "5.0.0"), (451, "2.0.0"), (550, "5.1"), (550, "5.1.1000"),
     (550, "5.1.1\r"), (550, "5.1.1 x"), (550, "3.1.1"), (550, "5.1.\uff11")],
)  # fmt: skip
def test_invalid_reply_codes_are_refused(code: int, enhanced: str) -> None:
    with pytest.raises(ValueError):
        Reply(code, enhanced, "text")


# Units.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("5d", 432000), ("1w", 604800), ("0s", 0)],
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", 5, 5.0, "5 m", "5M", "-5m", "m", "5mm", "5m\n", "1e3s", "\u0665s", None, True, "9" * 30 + "w"]
)
def test_invalid_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("256KiB", 262144), ("25MiB", 26214400), ("10GB", 10**10), ("1.5 kB", 1500)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "5K", "5kb", "-5MB", "MB", "5MB\n", 5.0, None, True, "5\nMB"])
def test_invalid_sizes_of_settings_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a size with its unit"):
        parse_size(text)


@given(st.integers(0, 10**12))
def test_formatted_units_are_parsed_back(number: int) -> None:
    duration = timedelta(milliseconds=number)
    assert parse_duration(format_duration(duration)) == duration
    assert parse_size(format_size(number)) == number


def test_units_are_formatted_in_the_largest_exact_unit() -> None:
    assert [format_duration(parse_duration(text)) for text in ("7d", "90s", "2h", "1500ms", "60m", "0s")] == [
        "7d", "90s", "2h", "1500ms", "1h", "0ms",
    ]  # fmt: skip
    assert [format_size(size) for size in (0, 1000, 1024, 26214400)] == ["0B", "1000B", "1KiB", "25MiB"]


# Ids.


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1))
def test_queue_ids_sort_by_time_then_by_random_part(ms1: int, random1: int, ms2: int, random2: int) -> None:
    first, second = make_queue_id(ms1, random1), make_queue_id(ms2, random2)
    assert ((ms1, random1) < (ms2, random2)) == (first < second)
    assert len(first) == 26


def test_ulid_example_of_the_specification() -> None:
    assert make_queue_id(1469918176385, 0).startswith("01ARYZ6S41")  # the time of the ULID specification's example
    assert queue_id_time(make_queue_id(1469918176385, 7)) == datetime(2016, 7, 30, 22, 36, 16, 385000, UTC)


def test_queue_ids_increase_when_the_clock_goes_back() -> None:
    clock = [5, 5, 5, 4, 0, 6, 6, 5, 7]
    generator = _MonotonicGenerator()
    ids = [generator.make(now) for now in clock]
    assert ids == sorted(set(ids))


def test_queue_ids_are_unique_over_threads_and_increase_in_each() -> None:
    ids_of_threads: list[list[QueueId]] = [[] for _ in range(8)]
    threads = [
        threading.Thread(target=lambda ids=ids: ids.extend(new_queue_id() for _ in range(2000)))
        for ids in ids_of_threads
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({queue_id for ids in ids_of_threads for queue_id in ids}) == 16_000
    assert all(ids == sorted(ids) for ids in ids_of_threads)


def test_queue_ids_of_two_processes_differ() -> None:
    first = _MonotonicGenerator().make(1)
    assert first != _MonotonicGenerator().make(1)


def test_derived_queue_id_depends_on_time_and_seed() -> None:
    assert derived_queue_id(_NOW, "a") == derived_queue_id(_NOW, "a") != derived_queue_id(_NOW, "b")
    assert queue_id_time(derived_queue_id(_NOW, "a")) == _NOW


@pytest.mark.parametrize("text", ["", "01ARZ3NDEKTSV4RRFFQ69G5FA", "01arz3ndektsv4rrffq69g5fav", "U" * 26, "0" * 27])
def test_invalid_queue_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a queue id"):
        queue_id_time(QueueId(text))


def test_delivery_id_contains_its_queue_id() -> None:
    queue_id = new_queue_id()
    assert queue_id_of(delivery_id(queue_id, 12)) == queue_id


# Topics and keys. These values are on disks and in brokers and must not change.


@pytest.mark.parametrize(
    ("key", "count", "shard"),
    [
        ("", 8, 0),
        ("123456789", 2**32, 0xCBF43926),  # the check value of CRC-32
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", 12, 9),
        ("mx:10=mx.example.test", 12, 6),
        ("smtp://127.0.0.1:2626", 48, 45),
        ("\u00fc", 1000, 789),
        ("anything", 1, 0),
    ],
)
def test_partitioner_does_not_change(key: str, count: int, shard: int) -> None:
    assert shard_of(key, count) == shard


def test_every_record_has_a_topic_and_a_key() -> None:
    queue_id = QueueId("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    counts = ShardCounts(12, 48)
    shard = shard_of(queue_id, 12)
    message = Message(queue_id, "default", _NOW, Envelope(None, ()), 0)
    delivery = Delivery(delivery_id(queue_id, 1), message, ToRelay("127.0.0.1", 2626))
    key = delivery.id
    assert place(Accepted(message, Inline(b"")), counts) == Place(ACCEPTED, shard, queue_id)
    assert place(Event(queue_id, _NOW, Closed()), counts) == Place(EVENTS, shard, queue_id)
    assert place(QueueEntry(delivery, Active(_NOW), None), counts) == Place(QUEUE, shard, key)
    assert place(QueueTombstone(key), counts) == Place(QUEUE, shard, key)
    assert place(Attempted(key, 1, (), _NOW, timedelta()), counts) == Place(ATTEMPTED, shard, key)
    dispatched = place(Dispatched(delivery, 1, Inline(b"")), counts)
    assert dispatched == Place(DISPATCHED, shard_of(f"smtp://127.0.0.1:2626/{shard_of(queue_id, 16)}", 48), key)
    assert [counts.of(topic) for topic in ALL_TOPICS] == [12, 12, 48, 12, 12]


def test_site_names_of_routes() -> None:
    hosts = ((10, "a.test"), (20, "b.test"))
    assert ToMx("one.test", hosts).site == ToMx("two.test", hosts).site == "mx:a.test|b.test"
    assert ToMx("three.test", ((5, "a.test"), (10, "b.test"))).site == "mx:a.test|b.test"
    assert ToMx("four.test", ((10, "b.test"), (20, "a.test"))).site == "mx:b.test|a.test"
    same = ToMx("five.test", ((7, "b.test"), (7, "a.test"), (9, "c.test")))
    assert (
        same.site == ToMx("six.test", ((1, "a.test"), (1, "b.test"), (2, "c.test"))).site == "mx:a.test,b.test|c.test"
    )
    assert ToMailbox("a@b.test").site == "mailbox"
    assert ToRelay("h.test", 24, RelayProtocol.LMTP).site == "lmtp://h.test:24"
    assert Unresolved("a.test").site == "unresolved:a.test"


# Endpoints.


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:2525", "127.0.0.1", 2525),
        ("[::1]:25", "::1", 25),
        ("[2001:DB8:0::1]:25", "2001:db8::1", 25),
        ("MX.example.test:25", "mx.example.test", 25),
        ("localhost:0", "localhost", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    assert endpoint.parse(text) == (host, port)
    assert endpoint.parse(endpoint.format(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":25", "25", "a.test", "a.test:", "a.test:x", "a.test:65536", "a.test:-1", "::1:25", "[::1]", "[a.test]:25",
     "[127.0.0.1]:25", "a b:25", "a.test:25\n", "smtp://a.test:25", "256.0.0.1:25", "a.test:\u0662\u0665"],
)  # fmt: skip
def test_invalid_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        endpoint.parse(text)


def test_relays_are_parsed() -> None:
    assert endpoint.parse_relay("smtp://127.0.0.1:2626") == ToRelay("127.0.0.1", 2626)
    assert endpoint.parse_relay("lmtp://[::1]:24") == ToRelay("::1", 24, RelayProtocol.LMTP)


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:25", "http://a.test:25", "smtp://a.test", "smtp://a.test:0", "smtp://a.test:25/", "mx"]
)
def test_invalid_relays_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|has a port"):
        endpoint.parse_relay(text)
