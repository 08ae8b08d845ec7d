"""Journey 34: the exchangers of a domain: the next one in the same attempt, and this server among them."""

from __future__ import annotations

from mail.outcome import Delivered
from mail.record import DeliveryAttempted, FailedByRouter
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import free_port
from tests.support.servers.scripted_remote import ScriptedRemote
from tests.support.servers.static_resolver import StaticResolver

CONTENT = b"Subject: hello\r\n\r\nhello\r\n"
RESOLVER = StaticResolver(
    mx={"far.test": [(10, "mx1.far.test"), (20, "mx2.far.test")], "own.test": [(10, "other-name-of-ours.test")]},
    addresses={
        "mx1.far.test": ["127.0.0.2"],
        "mx2.far.test": ["127.0.0.3"],
        "other-name-of-ours.test": ["127.0.0.1"],
    },
)


async def test_second_exchanger_takes_the_mail_in_the_first_attempt() -> None:
    full = {"MAIL": ["452 4.3.1 disk full"], "RCPT": ["503 5.5.1 no MAIL"], "DATA": ["503 5.5.1 no MAIL"]}
    async with (
        ScriptedRemote(full, host="127.0.0.2") as first,
        ScriptedRemote(host="127.0.0.3", port=first.port) as second,
        InMemoryMailServer({"delivery": {"mx_port": first.port}}, resolver=RESOLVER) as mail_server,
    ):
        queue_id = await mail_server.send(CONTENT, to=["friend@far.test"])
        details = await mail_server.wait_closed(queue_id)
        (attempt,) = (detail for detail in details if isinstance(detail, DeliveryAttempted))
        assert isinstance(attempt.outcomes[0], Delivered)
        assert [(one.remote, str(one.reply)) for one in attempt.asked] == [
            (f"mx1.far.test[127.0.0.2]:{first.port}", "452 4.3.1 disk full"),
            (f"mx2.far.test[127.0.0.3]:{first.port}", "250 2.0.0 accepted"),
        ]
        assert (len(first.messages), len(second.messages)) == (0, 1)


async def test_exchanger_with_another_name_of_ours_bounces_once() -> None:
    port = free_port()
    settings = {"ingress": {"smtp_listen": f"127.0.0.1:{port}"}, "delivery": {"mx_port": port}}
    mail_server = InMemoryMailServer(settings, resolver=RESOLVER)
    mail_server.smtp_port = port
    async with mail_server:
        queue_id = await mail_server.send(CONTENT, to=["friend@own.test"])
        await mail_server.wait_bounce(queue_id)
        details = await mail_server.history(queue_id)
        (attempt,) = (detail for detail in details if isinstance(detail, DeliveryAttempted))
        assert attempt.outcomes[0].reply.enhanced == "5.4.6"
        assert not any(isinstance(detail, FailedByRouter) for detail in details)
        (dsn,) = await mail_server.mailbox("bob")
        assert b"5.4.6" in dsn
