"""Replies of one loop iteration are sent together; a failed write does not affect others."""

from __future__ import annotations

import asyncio

from ingress.write_coalescer import WriteCoalescer


async def test_all_writes_run_at_the_end_of_the_iteration_despite_an_error() -> None:
    coalescer = WriteCoalescer(asyncio.get_running_loop())
    written: list[int] = []

    def failing() -> None:
        raise RuntimeError("the transport is closed")

    coalescer.add(lambda: written.append(1))
    coalescer.add(failing)
    coalescer.add(lambda: written.append(2))
    assert written == []
    await asyncio.sleep(0)
    assert written == [1, 2]
    coalescer.add(lambda: written.append(3))
    await asyncio.sleep(0)
    assert written == [1, 2, 3]
