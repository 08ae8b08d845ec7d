"""09: one message, several recipients, a different end for each; nobody gets it twice and the report names only one."""

from __future__ import annotations

from mail.outcome import Deferred, Delivered, Failed
from mail.record import Tried
from tests.support.remote import Remote
from tests.support.world import World

LETTER = b"Subject: to all of you\r\n\r\nhello\r\n"


async def test_each_recipient_has_an_end_of_its_own() -> None:
    script = {"RCPT": ["250 2.1.5 ok", "550 5.1.1 no such user", "451 4.2.0 busy", "250 2.1.5 ok now"]}
    async with (
        Remote(script) as remote,
        World({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": {"retry": ["300ms"]}}) as world,
    ):
        queue_id = await world.send(
            LETTER, to=["alice@example.test", "good@elsewhere.test", "gone@elsewhere.test", "busy@elsewhere.test"]
        )
        await world.bounce_of(queue_id)
        ends = {}
        for tried in await world.happened(queue_id, Tried):
            for outcome in tried.outcomes:
                ends.setdefault(str(outcome.recipient), []).append(type(outcome))
        assert ends == {
            "alice@example.test": [Delivered],
            "good@elsewhere.test": [Delivered],
            "gone@elsewhere.test": [Failed],
            "busy@elsewhere.test": [Deferred, Delivered],
        }
        assert len(await world.mailbox("alice")) == 1
        taken = [recipient for message in remote.messages for recipient in message.rcpts]
        assert sorted(taken) == ["TO:<busy@elsewhere.test>", "TO:<good@elsewhere.test>"]
        (report,) = await world.mailbox("bob")
        assert b"Final-Recipient: rfc822; gone@elsewhere.test" in report
        assert b"Final-Recipient: rfc822; good@elsewhere.test" not in report
        assert b"Final-Recipient: rfc822; busy@elsewhere.test" not in report
