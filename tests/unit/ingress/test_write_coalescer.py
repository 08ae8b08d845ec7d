"""Replies of one turn leave together, and one that cannot leave holds up no other."""

from __future__ import annotations

import asyncio

from ingress.write_coalescer import WriteCoalescer


async def test_all_leave_at_the_end_of_the_turn_whatever_becomes_of_one() -> None:
    outbox = WriteCoalescer(asyncio.get_running_loop())
    written: list[int] = []

    def gone() -> None:
        raise RuntimeError("the transport is closed")

    outbox.add(lambda: written.append(1))
    outbox.add(gone)
    outbox.add(lambda: written.append(2))
    assert written == []
    await asyncio.sleep(0)
    assert written == [1, 2]
    outbox.add(lambda: written.append(3))
    await asyncio.sleep(0)
    assert written == [1, 2, 3]
