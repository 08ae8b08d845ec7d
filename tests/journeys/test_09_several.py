"""Journey 9: one message with several recipients and several outcomes: no duplicates, and the DSN names only the
failed one.
"""

from __future__ import annotations

from mail.outcome import Deferred, Delivered, Failed
from mail.record import DeliveryAttempted
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.scripted_remote import ScriptedRemote

CONTENT = b"Subject: to all of you\r\n\r\nhello\r\n"


async def test_each_recipient_has_its_own_outcome() -> None:
    script = {"RCPT": ["250 2.1.5 ok", "550 5.1.1 no such user", "451 4.2.0 busy", "250 2.1.5 ok now"]}
    async with (
        ScriptedRemote(script) as remote,
        InMemoryMailServer(
            {"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": {"retry_delays": ["300ms"]}}
        ) as mail_server,
    ):
        queue_id = await mail_server.send(
            CONTENT, to=["alice@example.test", "good@elsewhere.test", "gone@elsewhere.test", "busy@elsewhere.test"]
        )
        await mail_server.wait_bounce(queue_id)
        ends = {}
        for attempt in await mail_server.details(queue_id, DeliveryAttempted):
            for outcome in attempt.outcomes:
                ends.setdefault(str(outcome.recipient), []).append(type(outcome))
        assert ends == {
            "alice@example.test": [Delivered],
            "good@elsewhere.test": [Delivered],
            "gone@elsewhere.test": [Failed],
            "busy@elsewhere.test": [Deferred, Delivered],
        }
        assert len(await mail_server.mailbox("alice")) == 1
        taken = [recipient for message in remote.messages for recipient in message.rcpts]
        assert sorted(taken) == ["TO:<busy@elsewhere.test>", "TO:<good@elsewhere.test>"]
        (report,) = await mail_server.mailbox("bob")
        assert b"Final-Recipient: rfc822; gone@elsewhere.test" in report
        assert b"Final-Recipient: rfc822; good@elsewhere.test" not in report
        assert b"Final-Recipient: rfc822; busy@elsewhere.test" not in report
