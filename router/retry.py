"""Retry schedule: time of the next attempt, and expiry of deferred deliveries. Pure: jitter is a hash of the delivery,
time is an argument.

Full jitter (Brooker, "Exponential Backoff and Jitter") spreads the delay over the whole step, so that deliveries that
failed together are not retried together; the minimum is a tenth of the step. The last attempt is made when the lifetime
ends; recipients deferred by it fail (RFC 5321 section 4.5.4.1: give up after at least 4-5 days).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

JITTER_FLOOR = 0.1

# An unanswered DNS query is repeated after a quarter of the message's age, within these bounds.
RESOLVE_DELAY_MIN = timedelta(seconds=2)
RESOLVE_DELAY_MAX = timedelta(minutes=15)


def hashed_fraction(seed: str) -> float:
    """A number in [0, 1) derived from `seed`: equal for repeated decisions on the same trigger."""
    return int.from_bytes(blake2b(seed.encode(), digest_size=6).digest()) / (1 << 48)


def retry_step(schedule: Sequence[timedelta], attempts: int) -> timedelta:
    """The schedule's step after `attempts` attempts (from 1); the last step repeats. `router/quarantine.py`
    uses the step without jitter or lifetime cap.
    """
    return schedule[min(max(attempts, 1), len(schedule)) - 1]


def retry_delay(schedule: Sequence[timedelta], attempts: int, seed: str) -> timedelta:
    """The delay before the next attempt: between a tenth of the step and the whole step."""
    return retry_step(schedule, attempts) * (JITTER_FLOOR + (1 - JITTER_FLOOR) * hashed_fraction(f"{seed}/{attempts}"))


def is_expired(received: datetime, lifetime: timedelta, now: datetime) -> bool:
    """Whether the message's lifetime has ended."""
    return now - received >= lifetime


def next_attempt_time(
    schedule: Sequence[timedelta], lifetime: timedelta, attempts: int, seed: str, received: datetime, now: datetime
) -> datetime:
    """The time of the next attempt, at the latest the end of the lifetime, when a last attempt is made."""
    due = now + retry_delay(schedule, attempts, seed)
    end = received + lifetime
    return min(due, end) if end > now else due


def next_resolve_time(received: datetime, now: datetime, seed: str) -> datetime:
    """The time of the next DNS query for an unresolved domain: after seconds at first, minutes later."""
    wait = min(max((now - received) / 4, RESOLVE_DELAY_MIN), RESOLVE_DELAY_MAX)
    return now + wait * (0.75 + 0.5 * hashed_fraction(f"{seed}/{now.timestamp()}"))
