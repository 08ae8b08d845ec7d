"""Helpers to drive a client session in tests and to read its outcomes."""

from __future__ import annotations

from delivery.client_session import ClientSession, Phase
from mail.envelope import Envelope
from mail.route import RelayProtocol
from tests.support.builders.delivery import envelope

FULL = b"250-remote.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
BARE = b"250 remote.test\r\n"
HELLO = b"Subject: hi\r\n\r\nhello\r\n"


def ready_session(ehlo: bytes = FULL, protocol: RelayProtocol = RelayProtocol.SMTP) -> ClientSession:
    session = ClientSession("us.test", "remote.test[192.0.2.1]:25", protocol)
    session.receive(b"220 remote.test\r\n")
    assert sent_bytes(session) == (b"EHLO us.test\r\n" if protocol is RelayProtocol.SMTP else b"LHLO us.test\r\n")
    session.receive(ehlo)
    assert session.phase is Phase.READY
    return session


def sent_bytes(session: ClientSession) -> bytes:
    """Take the output and write all of it."""
    out = b"".join(session.to_send())
    session.on_output_written()
    return out


def outcome_names(session: ClientSession) -> list[str]:
    assert session.result is not None
    return [type(outcome).__name__ for outcome in session.result.outcomes]


def reply_codes(session: ClientSession) -> list[str]:
    assert session.result is not None
    return [f"{outcome.reply.code} {outcome.reply.enhanced}".strip() for outcome in session.result.outcomes]


def start_transaction(
    session: ClientSession, *recipients: str, content: bytes = HELLO, own_envelope: Envelope | None = None
) -> bytes:
    session.start_transaction(own_envelope or envelope(*recipients), content)
    return sent_bytes(session)
