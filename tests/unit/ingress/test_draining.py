"""An ingress that starts and stops: settings it refuses, and sessions that are open at its end."""

from __future__ import annotations

import asyncio

import pytest

from mail.service import ServiceError
from mail.settings import NodeSettings
from tests.support.ingressing import Running, running


async def test_draining_says_421_to_the_idle_and_finishes_the_busy() -> None:
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="20s"))
    await world.start()
    idle, busy = await world.connect(), await world.connect()
    await idle.reply()
    await busy.begin()
    world.stop.set()
    assert await idle.reply() == "421 4.3.2 Shutting down, try again later"
    assert await idle.rest() == b""
    assert (await busy.say("Subject: x\r\n\r\n.")).startswith("250 ")
    assert await busy.reply() == "421 4.3.2 Shutting down, try again later"
    await world.close()
    assert len(world.log.accepted) == 1


async def test_draining_leaves_a_moment_for_the_quit_that_is_on_its_way() -> None:
    """Python's smtplib takes a 421 in place of the 221 for a failure, and its caller sends again what had its 250."""
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="20s"))
    await world.start()
    done, busy = await world.connect(), await world.connect()
    await done.begin()
    assert (await done.say("Subject: x\r\n\r\n.")).startswith("250 ")
    await busy.begin()
    world.stop.set()
    await asyncio.sleep(0.1)
    assert (await done.say("QUIT")).startswith("221 ")
    await asyncio.sleep(0.7)
    assert (await busy.say("Subject: x\r\n\r\n.")).startswith("250 ")
    assert (await busy.say("QUIT")).startswith("221 ")
    await world.close()


async def test_draining_cuts_who_never_ends() -> None:
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="100ms"))
    await world.start()
    client = await world.connect()
    await client.begin()
    client.send(b"Subject: x\r\n")
    await asyncio.wait_for(world.close(), 10)
    assert await client.rest() == b"421 4.3.2 Shutting down, try again later\r\n"
    assert world.log.accepted == []
    assert world.ingress._sessions == set()


async def test_a_port_in_use_is_one_line() -> None:
    async with running() as world:
        host, port = world.ingress.listening[0]
        with pytest.raises(ServiceError, match=r"ingress\.mx"):
            await Running(mx=f"{host}:{port}").start()


def test_a_wrong_network_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"ingress\.relay_networks.*10\.0\.0\.1/8"):
        Running(relay_networks=["10.0.0.1/8"])
