"""What counts as tempfail: a message that ingress cannot take now, at any command; not what a client does wrong."""

from __future__ import annotations

import pytest

from mail.log import Condition, Down, Full
from tests.support.ingressing import running
from tests.support.metrics import value


def _tempfailed() -> float:
    return value("messages_received_total", result="tempfail")


@pytest.mark.parametrize(("condition", "code"), [(Full("test"), "452 4.3.1"), (Down("test"), "421 4.3.2")])
async def test_mail_that_is_refused_because_of_the_log_counts(condition: Condition, code: str) -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO client.test")
        before, world.log.now = _tempfailed(), condition
        assert (await client.say("MAIL FROM:<>")).startswith(code)
        assert _tempfailed() == before + 1


async def test_a_message_to_a_tenant_whose_log_is_full_counts_once() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO client.test")
        await client.say("MAIL FROM:<>")
        before, world.log.now = _tempfailed(), Full("test")
        for name in ("alice", "bob"):
            assert (await client.say(f"RCPT TO:<{name}@example.test>")).startswith("452 4.3.1")
        assert _tempfailed() == before + 1


async def test_a_sender_whose_domain_cannot_be_looked_up_does_not_count() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO client.test")
        before = _tempfailed()
        assert (await client.say("MAIL FROM:<somebody@unknown.test>")).startswith("450 4.1.8")
        assert _tempfailed() == before
