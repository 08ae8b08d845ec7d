"""Per-process circuit breaker for unresponsive brokers; a comment in `mail/log/kafka/__init__.py` tells what happens to
mail meanwhile.

A broker that hangs or lost power closes no connection, and until the cluster removes it, every aiokafka client sends it
metadata and coordinator requests that end in time-outs. After a time-out the broker is checked on a new connection,
which succeeds for a leader that only waits for its followers. If the check fails, the circuit *opens*: clients do not
connect to the broker (aiokafka then tries another one) and it is checked again on demand, but a connection on which it
has answered since stays in use, and with all circuits open all brokers are tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from mail import endpoint
from mail.log.kafka.error_messages import error_message
from mail.log.kafka.timeouts import TIMEOUTS
from mail.tasks import cancel_tasks

logger = structlog.get_logger()

_CONNECT_TIME_FACTOR = 4
_CONNECT_TIME_DECAY = 0.9  # with each further connection, so that a slow one is forgotten

Address = tuple[str, int]
Connect = Callable[[str, int], Awaitable[None]]


class CircuitBreaker:
    """Circuits of one process, whose clients share one event loop. `connect` returns when a broker has answered on a
    new connection.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._timed_out_at: dict[Address, float] = {}  # until the broker passes a check
        self._opened_at: dict[Address, float] = {}  # brokers whose circuit is open
        self._checks: dict[Address, asyncio.Task[bool]] = {}
        self._slow_connect_seconds = 0.0  # about the slowest of the recent connections

    def available(self, addresses: Sequence[str]) -> list[str]:
        """Those of `addresses` ("HOST:PORT") whose circuit is closed; all when none is. Open ones are checked again."""
        return [address for address in addresses if not self._is_open(endpoint.parse(address))] or list(addresses)

    def check(self, host: str, port: int) -> asyncio.Task[bool]:
        """Check a broker after a time-out; the task returns whether it answered."""
        address = host, port
        if address not in self._checks:
            self._timed_out_at.setdefault(address, time.monotonic())
            name = f"check of {endpoint.format(*address)}"
            self._checks[address] = asyncio.create_task(self._check_broker(address), name=name)
        return self._checks[address]

    def check_all(self, addresses: Collection[Address], brokers: Collection[Address]) -> None:
        """Check brokers after a time-out, if `brokers` has others to use."""
        if len(brokers) > 1:
            for address in addresses:
                self.check(*address)

    async def may_connect(self, address: Address, answered_at: float | None, brokers: Collection[Address]) -> bool:
        """Whether a client may use the broker; waits only for its first check. `answered_at`: when it last answered on
        the client's open connection, in monotonic time; `brokers`: those of the cluster.
        """
        timed_out_at = self._timed_out_at.get(address)
        if timed_out_at is None or (answered_at is not None and answered_at > timed_out_at):
            return True
        if not self._is_open(address) and (address not in self._checks or await asyncio.shield(self._checks[address])):
            return True
        return all(broker in self._opened_at for broker in brokers)

    def record_connect(self, seconds: float) -> None:
        """A connection was made, which took this long."""
        self._slow_connect_seconds = max(_CONNECT_TIME_DECAY * self._slow_connect_seconds, seconds)

    def _is_open(self, address: Address) -> bool:
        if address not in self._opened_at:
            return False
        if time.monotonic() - self._opened_at[address] >= TIMEOUTS.retry_seconds:
            self.check(*address)
        return True

    async def _check_broker(self, address: Address) -> bool:
        name = endpoint.format(*address)
        try:
            usual_seconds = max(TIMEOUTS.check_seconds, _CONNECT_TIME_FACTOR * self._slow_connect_seconds)
            async with asyncio.timeout(min(TIMEOUTS.check_max_seconds, usual_seconds)):
                await self._connect(*address)
        except Exception as error:  # an exception would end the aiokafka task that waits for the check
            if address not in self._opened_at:
                event = "broker does not respond, circuit opened, other brokers are used"
                logger.warning(event, broker=name, error=error_message(error))
            self._opened_at[address] = time.monotonic()
            return False
        else:
            self._timed_out_at.pop(address, None)
            if self._opened_at.pop(address, None) is not None:
                logger.info("broker responds again, circuit closed", broker=name)
            return True
        finally:
            del self._checks[address]

    async def close(self) -> None:
        await cancel_tasks(*self._checks.values())
