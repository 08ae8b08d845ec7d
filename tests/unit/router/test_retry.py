"""Tests of retry times: bounds of the jitter, its seed, and the last attempt at the end of the lifetime."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from router.retry import (
    JITTER_FLOOR,
    RESOLVE_DELAY_MAX,
    RESOLVE_DELAY_MIN,
    hashed_fraction,
    is_expired,
    next_attempt_time,
    next_resolve_time,
    retry_delay,
    retry_step,
)
from tests.support.builders.routing import START

SCHEDULE = [timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1)]
LIFETIME = timedelta(days=5)


@given(attempts=st.integers(1, 50), seed=st.text(max_size=40))
def test_delay_is_within_its_step(attempts: int, seed: str) -> None:
    step = SCHEDULE[min(attempts, 3) - 1]
    assert retry_step(SCHEDULE, attempts) == step
    assert step * JITTER_FLOOR <= retry_delay(SCHEDULE, attempts, seed) <= step


def test_jitter_spreads_over_the_whole_step() -> None:
    waits = sorted(retry_delay(SCHEDULE, 2, f"D-{number}") for number in range(500))
    tenths = {int((wait - SCHEDULE[1] * JITTER_FLOOR) / (SCHEDULE[1] * (1 - JITTER_FLOOR)) * 10) for wait in waits}
    assert tenths == set(range(10))
    assert len(set(waits)) == 500


@given(seed=st.text(max_size=20))
def test_jitter_is_the_same_for_the_same_seed(seed: str) -> None:
    assert 0 <= hashed_fraction(seed) < 1
    assert hashed_fraction(seed) == hashed_fraction(seed)


@given(age=st.integers(0, 6 * 86400), attempts=st.integers(1, 60))
def test_last_attempt_is_made_when_the_lifetime_ends(age: int, attempts: int) -> None:
    now = START + timedelta(seconds=age)
    due = next_attempt_time(SCHEDULE, LIFETIME, attempts, "D-1", START, now)
    assert now < due
    if now < START + LIFETIME:
        assert due <= START + LIFETIME
    assert is_expired(START, LIFETIME, START + LIFETIME)
    assert not is_expired(START, LIFETIME, START + LIFETIME - timedelta(seconds=1))


@given(age=st.integers(0, 6 * 86400))
def test_dns_retry_starts_at_seconds_and_grows_to_minutes(age: int) -> None:
    now = START + timedelta(seconds=age)
    wait = next_resolve_time(START, now, "D-1") - now
    assert RESOLVE_DELAY_MIN * 0.75 <= wait <= RESOLVE_DELAY_MAX * 1.25
    if age < 8:
        assert wait <= timedelta(seconds=2.5)
