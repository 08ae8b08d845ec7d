"""Jitter stays in its bounds, depends on the delivery, and the last attempt falls on the end of the lifetime."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from router.retry import (
    FLOOR,
    RESOLVE_LATEST,
    RESOLVE_SOONEST,
    chance,
    due_again,
    is_over,
    resolve_again,
    step_of,
    wait_after,
)
from tests.support.routing import START

SCHEDULE = [timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1)]
LIFETIME = timedelta(days=5)


@given(attempts=st.integers(1, 50), seed=st.text(max_size=40))
def test_the_wait_is_within_its_step(attempts: int, seed: str) -> None:
    step = SCHEDULE[min(attempts, 3) - 1]
    assert step_of(SCHEDULE, attempts) == step
    assert step * FLOOR <= wait_after(SCHEDULE, attempts, seed) <= step


def test_jitter_spreads_over_the_whole_step() -> None:
    waits = sorted(wait_after(SCHEDULE, 2, f"D-{number}") for number in range(500))
    tenths = {int((wait - SCHEDULE[1] * FLOOR) / (SCHEDULE[1] * (1 - FLOOR)) * 10) for wait in waits}
    assert tenths == set(range(10))
    assert len(set(waits)) == 500


@given(seed=st.text(max_size=20))
def test_chance_is_the_same_for_the_same_seed(seed: str) -> None:
    assert 0 <= chance(seed) < 1
    assert chance(seed) == chance(seed)


@given(age=st.integers(0, 6 * 86400), attempts=st.integers(1, 60))
def test_the_last_attempt_is_made_when_the_lifetime_ends(age: int, attempts: int) -> None:
    now = START + timedelta(seconds=age)
    due = due_again(SCHEDULE, LIFETIME, attempts, "D-1", START, now)
    assert now < due
    if now < START + LIFETIME:
        assert due <= START + LIFETIME
    assert is_over(START, LIFETIME, START + LIFETIME)
    assert not is_over(START, LIFETIME, START + LIFETIME - timedelta(seconds=1))


@given(age=st.integers(0, 6 * 86400))
def test_dns_is_asked_again_within_seconds_at_first_and_minutes_later(age: int) -> None:
    now = START + timedelta(seconds=age)
    wait = resolve_again(START, now, "D-1") - now
    assert RESOLVE_SOONEST * 0.75 <= wait <= RESOLVE_LATEST * 1.25
    if age < 8:
        assert wait <= timedelta(seconds=2.5)
