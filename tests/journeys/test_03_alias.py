"""Journey 3: aliases: several targets, nested aliases, and alias loops."""

from __future__ import annotations

import email
import email.policy
import io
from datetime import UTC, datetime

from eilpost import trace_view
from eilpost.output import Output
from mail.message import QueueId
from mail.record import FailedByRouter, Routed
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.scripted_remote import ScriptedRemote

CONTENT = b"Subject: to all\r\n\r\nhello\r\n"


async def test_nested_alias_delivers_once_to_each_person() -> None:
    aliases = {
        "team@example.test": ["alice@example.test", "leads@example.test"],
        "leads@example.test": ["bob@example.test", "alice@example.test"],
    }
    async with InMemoryMailServer(aliases=aliases) as mail_server:
        queue_id = await mail_server.send(CONTENT, to=["team@example.test"])
        await mail_server.wait_closed(queue_id)
        routed = await mail_server.details(queue_id, Routed)
        people = sorted(str(name) for delivery in routed for name in delivery.recipients)
        assert people == ["alice@example.test", "bob@example.test"]
        for user in ("alice", "bob"):
            (stored,) = await mail_server.mailbox(user)
            assert stored.endswith(CONTENT)
        (line,) = [line for line in await trace_lines(mail_server, queue_id) if " expanded " in line]
        assert line.endswith("team@example.test -> alice@example.test, bob@example.test")


async def trace_lines(mail_server: InMemoryMailServer, queue_id: QueueId) -> list[str]:
    """The output of `eilpost trace`."""
    out = io.StringIO()
    for timeline in await trace_view.load_timelines(mail_server.log, queue_id):
        trace_view.write(timeline, Output(out), datetime.now(UTC))
    return out.getvalue().splitlines()


async def test_postmaster_of_the_hostname_gets_mail_under_that_address() -> None:
    async with InMemoryMailServer(aliases={"postmaster@example.test": ["alice@example.test"]}) as mail_server:
        queue_id = await mail_server.send(CONTENT, to=["postmaster@mx.example.test"])
        await mail_server.wait_closed(queue_id)
        assert len(await mail_server.mailbox("alice")) == 1
        assert any(
            "postmaster@mx.example.test -> alice@example.test" in line
            for line in await trace_lines(mail_server, queue_id)
        )


async def test_alias_may_point_to_a_remote_address() -> None:
    async with (
        ScriptedRemote() as remote,
        InMemoryMailServer(
            {"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}},
            aliases={"both@example.test": ["alice@example.test", "friend@elsewhere.test"]},
        ) as mail_server,
    ):
        await mail_server.wait_closed(await mail_server.send(CONTENT, to=["both@example.test"]))
        assert len(await mail_server.mailbox("alice")) == 1
        (message,) = remote.messages
        assert "<friend@elsewhere.test>" in message.rcpts[0]


async def test_alias_without_valid_target_is_refused_without_a_bounce() -> None:
    aliases = {
        "one@example.test": ["two@example.test"],
        "two@example.test": ["one@example.test"],
        "old@example.test": ["left@example.test"],
    }
    async with InMemoryMailServer(aliases=aliases) as mail_server:
        replies = await mail_server.smtp_session(
            "MAIL FROM:<bob@example.test>", "RCPT TO:<one@example.test>", "RCPT TO:<old@example.test>", "DATA"
        )
        assert [reply[:9] for reply in replies[-3:]] == ["550 5.4.6", "550 5.1.1", "554 5.5.1"]


async def test_list_with_invalid_targets_delivers_to_the_others_and_sends_a_dsn() -> None:
    async with InMemoryMailServer(
        aliases={"all@example.test": ["left@example.test", "alice@example.test"]}
    ) as mail_server:
        queue_id = await mail_server.send(CONTENT, to=["all@example.test"])
        await mail_server.wait_bounce(queue_id)
        (refused,) = await mail_server.details(queue_id, FailedByRouter)
        (outcome,) = refused.outcomes
        assert outcome.reply.enhanced == "5.1.1"
        (report,) = await mail_server.mailbox("bob")
        status = list(email.message_from_bytes(report, policy=email.policy.default).walk())
        assert any(part["Final-Recipient"] and "left@example.test" in part["Final-Recipient"] for part in status)
        assert len(await mail_server.mailbox("alice")) == 1
