"""Recent failed logins per client, which slow down the guessing of passwords. Pure: time is an argument.

A client is counted by its networks (`mail/client_counts.py`). The table is bounded: the client whose last failure is
the oldest is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

from mail.client_counts import client_networks

FORGET_SECONDS = 600.0  # after the last failure of a client
CLIENTS_MAX = 10_000
_UNDELAYED = 3  # failures with the shortest delay: typing errors
_FACTOR_MAX = 8  # the delay stays shorter than node.drain_timeout


class LoginFailures:
    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # network: count, time of the last one

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, ip: str, now: float) -> int:
        """Count a failure; returns how many the client had lately, this one included."""
        network = client_networks(ip)[0]
        count, last = self._failures.pop(network, (0, now))
        count = 1 if now - last > FORGET_SECONDS else count + 1
        self._failures[network] = count, now
        if len(self._failures) > CLIENTS_MAX:
            self._failures.popitem(last=False)
        return count


def delay_factor(failures: int) -> int:
    """How many times as long as the first the delay after a failure is: 1, 1, 1, 2, 4, then 8."""
    return min(_FACTOR_MAX, 1 << max(0, failures - _UNDELAYED))
