"""Helpers to drive a client dialogue in tests and to read its outcomes."""

from __future__ import annotations

from delivery.dialogue import Dialogue, Phase
from mail.envelope import Envelope
from mail.route import RelayProtocol
from tests.support.builders.delivery import envelope

FULL = b"250-remote.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
BARE = b"250 remote.test\r\n"
HELLO = b"Subject: hi\r\n\r\nhello\r\n"


def ready_dialogue(ehlo: bytes = FULL, protocol: RelayProtocol = RelayProtocol.SMTP) -> Dialogue:
    dialogue = Dialogue("us.test", "remote.test[192.0.2.1]:25", protocol)
    dialogue.receive(b"220 remote.test\r\n")
    assert sent_bytes(dialogue) == (b"EHLO us.test\r\n" if protocol is RelayProtocol.SMTP else b"LHLO us.test\r\n")
    dialogue.receive(ehlo)
    assert dialogue.phase is Phase.READY
    return dialogue


def sent_bytes(dialogue: Dialogue) -> bytes:
    return b"".join(dialogue.to_send())


def outcome_names(dialogue: Dialogue) -> list[str]:
    assert dialogue.result is not None
    return [type(outcome).__name__ for outcome in dialogue.result.outcomes]


def reply_codes(dialogue: Dialogue) -> list[str]:
    assert dialogue.result is not None
    return [f"{outcome.reply.code} {outcome.reply.enhanced}".strip() for outcome in dialogue.result.outcomes]


def start_transaction(
    dialogue: Dialogue, *recipients: str, content: bytes = HELLO, own_envelope: Envelope | None = None
) -> bytes:
    dialogue.start_transaction(own_envelope or envelope(*recipients), content)
    return sent_bytes(dialogue)
