"""New mail is turned away while the spool has no room for it or fails, and taken again afterwards."""

from __future__ import annotations

import asyncio

import pytest

from mail.spool import SpoolUnavailable
from tests.support.ingressing import HeldSpool, running

NO_ROOM = "452 4.3.1 Insufficient system storage, try again later"
OUR_FAULT = "451 4.3.0 Local error, try again later"


@pytest.mark.parametrize("trouble", ["little disk", "fails", "hangs"])
async def test_no_room_in_the_spool_is_4xx_at_mail_until_there_is_some(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr("ingress.storeroom.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("ingress.storeroom.PATIENCE_SECONDS", 0.05)
    hangs = asyncio.Event()
    hangs.set()

    async def free(self: HeldSpool) -> int | None:
        await hangs.wait()
        if self.out_of_order is not None:
            raise self.out_of_order
        return self.free

    monkeypatch.setattr(HeldSpool, "free_bytes", free)
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO x")
        match trouble:
            case "little disk":
                world.spool.free = 1 << 20
            case "fails":
                world.spool.out_of_order = SpoolUnavailable("read-only")
            case _:
                hangs.clear()
        await asyncio.sleep(0.2)
        assert await client.say("MAIL FROM:<alice@example.test>") == (
            NO_ROOM if trouble == "little disk" else OUR_FAULT
        )
        world.spool.free, world.spool.out_of_order = 1 << 40, None
        hangs.set()
        await asyncio.sleep(0.2)
        assert (await client.say("MAIL FROM:<alice@example.test>")).startswith("250")
