"""Journey 4: refused mail: unknown recipients, unknown senders, and relaying."""

from __future__ import annotations

from mail.settings_roles import IngressSettings
from tests.support.servers.in_memory import InMemoryMailServer

OUTSIDE = {"ingress": {"relay_networks": ["192.0.2.0/24"]}}  # excludes the address of this test


async def test_unknown_user_is_refused() -> None:
    async with InMemoryMailServer() as mail_server:
        replies = await mail_server.smtp_session(
            "MAIL FROM:<bob@example.test>", "RCPT TO:<nobody@example.test>", "DATA"
        )
        assert replies[-2].startswith("550 5.1.1 ")
        assert replies[-1].startswith("554 5.5.1 ")


async def test_unknown_user_does_not_affect_a_known_one() -> None:
    async with InMemoryMailServer() as mail_server:
        replies = await mail_server.smtp_session(
            "MAIL FROM:<bob@example.test>", "RCPT TO:<nobody@example.test>", "RCPT TO:<alice@example.test>", "DATA"
        )
        assert [reply[:3] for reply in replies[-3:]] == ["550", "250", "354"]


async def test_unknown_local_sender_is_refused() -> None:
    async with InMemoryMailServer() as mail_server:
        replies = await mail_server.smtp_session("MAIL FROM:<nobody@example.test>", "RCPT TO:<alice@example.test>")
        assert any(reply.startswith("550 5.1.") for reply in replies), replies


async def test_relaying_for_outside_clients_is_refused() -> None:
    async with InMemoryMailServer(OUTSIDE) as mail_server:
        replies = await mail_server.smtp_session("MAIL FROM:<someone@elsewhere.test>", "RCPT TO:<other@third.test>")
        assert replies[-1].startswith("550 5.7.1 ")
        replies = await mail_server.smtp_session("MAIL FROM:<someone@elsewhere.test>", "RCPT TO:<alice@example.test>")
        assert replies[-1].startswith("250 ")


async def test_sender_domain_that_does_not_exist_is_refused() -> None:
    assert IngressSettings().sender_domain_must_resolve  # the default; off in the journeys' server
    async with InMemoryMailServer({"ingress": {"sender_domain_must_resolve": True}}) as mail_server:
        mail_server.resolver.address_records["real.test"] = ["192.0.2.7"]
        mail_server.resolver.failing.add("silent.test")

        async def answer(domain: str) -> str:
            replies = await mail_server.smtp_session(f"MAIL FROM:<someone@{domain}>", "RCPT TO:<alice@example.test>")
            return next((reply for reply in replies if reply[0] in "45"), replies[-1])

        assert (await answer("real.test")).startswith("250 ")
        assert (await answer("unreal.test")).startswith("550 5.1.8 ")
        assert (await answer("silent.test")).startswith("450 4.1.8 ")
