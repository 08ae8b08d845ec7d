"""Tests of the state of exchangers: back-off, and their bounded number."""

from __future__ import annotations

import pytest

from delivery import exchangers
from delivery.exchangers import Exchangers


def test_consecutive_failures_back_an_exchanger_off() -> None:
    known = Exchangers(30.0)
    exchanger = known.use("mx.test", 25)
    for _ in range(2):
        exchanger.on_first_transaction_failed("silent", 0.0)
        exchanger.on_first_transaction_failed("silent", 0.0)
        exchanger.on_transaction()
    assert known.backoff_reason("mx.test", 25, 0.0) is None
    for _ in range(3):
        exchanger.on_first_transaction_failed("silent", 0.0)
    assert known.backoff_reason("mx.test", 25, 29.9) == "silent"
    assert known.backoff_reason("mx.test", 26, 29.9) is None
    assert known.backoff_reason("mx.test", 25, 30.0) is None


def test_back_off_doubles_until_a_transaction() -> None:
    exchanger = Exchangers(30.0).use("mx.test", 25)
    now = 0.0
    waits = []
    for _ in range(7):
        exchanger.back_off("dead", now)
        exchanger.back_off("dead", now + 1)  # another delivery to the same host
        wait = next(seconds for seconds in range(1, 1000) if exchanger.backoff_reason(now + seconds) is None)
        waits.append(wait)
        now += wait
    assert waits == [30, 60, 120, 240, 480, 480, 480]
    exchanger.on_transaction()
    exchanger.back_off("dead", now)
    assert exchanger.backoff_reason(now + 30) is None


def test_one_delivery_at_a_time_tries_an_exchanger_after_its_back_off() -> None:
    exchanger = Exchangers(30.0).use("mx.test", 25)
    exchanger.on_tried(0.0)
    assert exchanger.backoff_reason(0.0) is None  # it has not failed
    exchanger.back_off("silent", 0.0)
    assert exchanger.backoff_reason(30.0) is None
    exchanger.on_tried(30.0)
    assert exchanger.backoff_reason(30.0) == "silent"
    exchanger.back_off("still silent", 330.0)
    assert exchanger.backoff_reason(389.9) == "still silent"
    assert exchanger.backoff_reason(390.0) is None
    exchanger.on_tried(390.0)
    exchanger.on_transaction()
    assert exchanger.backoff_reason(390.0) is None


def test_exchangers_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchangers, "EXCHANGERS_MAX", 3)
    known = Exchangers(30.0)
    used = known.use("used.test", 25)
    for number in range(10):
        known.use(f"mx{number}.test", 25)
        assert known.use("used.test", 25) is used
    assert len(known._exchangers) == 3
