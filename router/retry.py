"""When a deferred delivery is tried again, and when it is given up. Pure: chance is a hash, time an argument.

Full jitter (Brooker, "Exponential Backoff and Jitter"): the wait is spread over the whole step, so that what failed
together does not come back together; its floor is a tenth of the step, so that a retry is never at once. The last
attempt is made when the lifetime ends, and what it defers then is given up (RFC 5321 section 4.5.4.1: at least 4-5
days).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

JITTER_FLOOR = 0.1

# DNS that did not answer is asked again after a quarter of the message's age, within these bounds.
RESOLVE_DELAY_MIN = timedelta(seconds=2)
RESOLVE_DELAY_MAX = timedelta(minutes=15)


def hashed_fraction(seed: str) -> float:
    """A number in [0, 1) that follows from `seed`: what two decisions of the same fact agree on."""
    return int.from_bytes(blake2b(seed.encode(), digest_size=6).digest()) / (1 << 48)


def retry_step(schedule: Sequence[timedelta], attempts: int) -> timedelta:
    """The schedule's step after `attempts` reported attempts (from 1); the last one repeats."""
    return schedule[min(max(attempts, 1), len(schedule)) - 1]


def retry_delay(schedule: Sequence[timedelta], attempts: int, seed: str) -> timedelta:
    """The wait before the next attempt: between a tenth of the step and the whole of it."""
    return retry_step(schedule, attempts) * (JITTER_FLOOR + (1 - JITTER_FLOOR) * hashed_fraction(f"{seed}/{attempts}"))


def is_expired(received: datetime, lifetime: timedelta, now: datetime) -> bool:
    """True when the message's lifetime has ended."""
    return now - received >= lifetime


def next_attempt_time(
    schedule: Sequence[timedelta],
    lifetime: timedelta,
    attempts: int,
    seed: str,
    received: datetime,
    now: datetime,
) -> datetime:
    """The next attempt's time; at the latest when the lifetime ends, so that a last one is made then."""
    due = now + retry_delay(schedule, attempts, seed)
    end = received + lifetime
    return min(due, end) if end > now else due


def next_resolve_time(received: datetime, now: datetime, seed: str) -> datetime:
    """When a domain that DNS did not answer for is asked about again: seconds at first, minutes later."""
    wait = min(max((now - received) / 4, RESOLVE_DELAY_MIN), RESOLVE_DELAY_MAX)
    return now + wait * (0.75 + 0.5 * hashed_fraction(f"{seed}/{now.timestamp()}"))
