"""Ports for servers that keep theirs across restarts: free, and outside the kernel's range for clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable

_FIRST, _LAST = 20_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A free TCP port of 127.0.0.1, never returned twice in one process."""
    for _ in range(1000):
        port = random.SystemRandom().randint(_FIRST, _LAST)
        if port in _given:
            continue
        if not _is_free(port):
            continue
        _given.add(port)
        return port
    raise RuntimeError("no free port")


def free_ports_from(*steps: int) -> int:
    """A free port `first` such that each `first + step` is free too."""
    while True:
        first = free_port()
        if all(_is_free(first + step) for step in steps):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for_greeting(port: int, *, deadline_seconds: float = 20.0) -> bytes:
    """The first line that a server on `port` sends. Raises TimeoutError."""
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
                line = peer.recv(512)
                if line:
                    with contextlib.suppress(OSError):
                        peer.sendall(b"QUIT\r\n")
                    return line
        except OSError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"nothing greets on port {port}")


def block_until(
    true: Callable[[], object],
    *,
    deadline_seconds: float = 20.0,
    poll_seconds: float = 0.05,
    what: str | Callable[[], object] = "it",
) -> None:
    """`wait_until` without an event loop. A callable `what` returns the text of the failure."""
    end = time.monotonic() + deadline_seconds
    while not true():
        if time.monotonic() > end:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"did not happen within {deadline_seconds:.0f} s: {text}")
        time.sleep(poll_seconds)


async def wait_until(
    true: object, *, deadline_seconds: float = 20.0, poll_seconds: float = 0.01, what: str = "it"
) -> None:
    """Return when the callable `true` returns a true value; a coroutine function is awaited."""
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        value = true()  # type: ignore[operator]
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        await asyncio.sleep(poll_seconds)
    raise AssertionError(f"{what} did not happen within {deadline_seconds:.0f} s")
