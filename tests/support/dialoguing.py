"""The client dialogue as a test drives it: brought to READY, fed by hand, its outcomes as words."""

from __future__ import annotations

from delivery.dialogue import Dialogue, Phase
from mail.envelope import Envelope
from mail.route import Speaks
from tests.support.delivering import envelope

FULL = b"250-remote.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
BARE = b"250 remote.test\r\n"
HELLO = b"Subject: hi\r\n\r\nhello\r\n"


def ready(ehlo: bytes = FULL, speaks: Speaks = Speaks.SMTP) -> Dialogue:
    dialogue = Dialogue("us.test", "remote.test[192.0.2.1]:25", speaks)
    dialogue.receive(b"220 remote.test\r\n")
    assert said(dialogue) == (b"EHLO us.test\r\n" if speaks is Speaks.SMTP else b"LHLO us.test\r\n")
    dialogue.receive(ehlo)
    assert dialogue.phase is Phase.READY
    return dialogue


def said(dialogue: Dialogue) -> bytes:
    return b"".join(dialogue.to_send())


def kinds(dialogue: Dialogue) -> list[str]:
    assert dialogue.carried is not None
    return [type(outcome).__name__ for outcome in dialogue.carried.outcomes]


def codes(dialogue: Dialogue) -> list[str]:
    assert dialogue.carried is not None
    return [f"{outcome.reply.code} {outcome.reply.enhanced}".strip() for outcome in dialogue.carried.outcomes]


def begin(dialogue: Dialogue, *recipients: str, content: bytes = HELLO, terms: Envelope | None = None) -> bytes:
    dialogue.begin(terms or envelope(*recipients), content)
    return said(dialogue)
