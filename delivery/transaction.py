"""One mail transaction as the client sees it: its commands, and the verdict on each recipient. Pure.

In charge of MAIL and RCPT parameters, of what cannot be sent to this server at all, of dot-stuffing, and of turning
answers into outcomes; never of their order (`delivery/dialogue.py` calls). Exactly one outcome for each recipient.
Source: RFC 5321, RFC 1870, RFC 6152, RFC 6531. Next: `delivery/smtp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import idna

from delivery.answer import Answer
from delivery.capabilities import Capabilities
from mail.address import Address
from mail.envelope import Body, Envelope
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.reply import Reply

# RFC 6531 section 3.5; RFC 1870 section 6.1; RFC 3030 section 3.
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "The next hop does not offer SMTPUTF8, which this message needs")
NEEDS_BINARYMIME = Reply(554, "5.6.3", "The message is BINARYMIME and cannot be converted for the next hop")

_TOO_MANY = frozenset(("", "4.5.3", "5.5.3"))


@dataclass(frozen=True, slots=True)
class Carried:
    """A transaction's end. `again` are the places of recipients that the server only had no room for in this
    transaction: they may be tried in the next one at once, and are Deferred in `outcomes` meanwhile. `lost` says that
    the server went away; `past_dot` that it may have taken the message all the same.
    """

    outcomes: tuple[Outcome, ...]
    again: tuple[int, ...] = ()
    lost: bool = False
    past_dot: bool = False


class Transaction:
    """Made for one server's capabilities. `mail` and `rcpts` are commands, CRLF included."""

    __slots__ = (
        "_again",
        "_asked",
        "_content",
        "_next",
        "_refused",
        "_remote",
        "_taken",
        "_to_ask",
        "_verdicts",
        "mail",
        "rcpts",
        "recipients",
    )

    def __init__(self, envelope: Envelope, content: bytes, capabilities: Capabilities, remote: str) -> None:
        self.recipients = tuple(recipient.address for recipient in envelope.recipients)
        self._content = content
        self._remote = remote
        self._verdicts: list[Outcome | None] = [None] * len(self.recipients)
        self._taken: list[int] = []  # places of recipients the server took
        self._next = 0  # of them, whose answer comes next (LMTP)
        self._again: list[int] = []
        self._refused = False
        self._asked = 0

        self._judge(envelope, content, capabilities)
        self._to_ask = [place for place, verdict in enumerate(self._verdicts) if verdict is None]
        self.mail = _mail(envelope, content, capabilities) if self._to_ask else b""
        self.rcpts = [b"RCPT TO:<%s>\r\n" % _written(self.recipients[place], capabilities) for place in self._to_ask]

    def _judge(self, envelope: Envelope, content: bytes, capabilities: Capabilities) -> None:
        """What this server can never take, without asking it."""
        if capabilities.max_size is not None and len(content) > capabilities.max_size:
            limit = capabilities.max_size
            text = f"The message has {len(content)} octets; {self._remote} takes {limit} at most"
            self._fail_open(Reply(552, "5.3.4", text))  # RFC 1870 section 6.1 (3)
            return
        if envelope.body is Body.BINARY:
            self._fail_open(NEEDS_BINARYMIME)
            return
        if capabilities.smtputf8:
            return
        sender = envelope.reverse_path
        if (sender is not None and not sender.local.isascii()) or (
            envelope.smtputf8 and not header_block(content).isascii()
        ):
            self._fail_open(NEEDS_SMTPUTF8)
            return
        for place, address in enumerate(self.recipients):
            if not address.local.isascii():
                self._verdicts[place] = Failed(address, NEEDS_SMTPUTF8)

    def _fail_open(self, reply: Reply) -> None:
        for place, address in enumerate(self.recipients):
            if self._verdicts[place] is None:
                self._verdicts[place] = Failed(address, reply)

    # What the dialogue asks

    def settled_before(self) -> Carried | None:
        """The end, when nobody is left to ask the server about."""
        return None if self._to_ask else self.carried()

    @property
    def goes_on(self) -> bool:
        """MAIL was not refused."""
        return not self._refused

    @property
    def anyone(self) -> bool:
        """The server took at least one recipient."""
        return bool(self._taken)

    @property
    def taken(self) -> int:
        return len(self._taken)

    def wire_content(self) -> list[bytes]:
        """The content as it goes out, the final dot included; not copied unless it has to be changed."""
        content = self._content
        parts = []
        if content.startswith(b"."):
            parts.append(b".")
        if b"\r\n." in content:
            content = content.replace(b"\r\n.", b"\r\n..")  # RFC 5321 section 4.5.2
        parts.append(content)
        parts.append(b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n")
        return parts

    # What the server answered

    def on_mail(self, answer: Answer) -> None:
        if answer.negative:
            self._refused = True
            self._settle(self._to_ask, answer)

    def on_rcpt(self, answer: Answer) -> None:
        place = self._to_ask[self._asked]
        self._asked += 1
        if self._refused:
            return  # MAIL's answer is the one that counts; this is its echo (503)
        if answer.positive:
            self._taken.append(place)
            return
        reply = answer.reply()
        if answer.code in (452, 552) and self._taken and reply.enhanced in _TOO_MANY:
            # RFC 5321 section 4.5.3.1.10: no more recipients in this transaction, and 552 means 452.
            self._again.append(place)
            reply = Reply(452, "4.5.3", reply.text)
        self._verdicts[place] = self._outcome(place, reply)

    def on_data_refused(self, answer: Answer) -> None:
        self._settle(self._taken, answer)

    def on_dot_for_all(self, answer: Answer) -> None:
        self._settle(self._taken, answer)

    def on_dot_for_next(self, answer: Answer) -> None:
        self._settle(self._taken[self._next : self._next + 1], answer)
        self._next += 1

    def closed_by(self, answer: Answer, *, past_dot: bool) -> Carried:
        """421: for those without a verdict. After the dot it is an answer like any other 4xx, for all of SMTP's
        recipients and LMTP's next ones alike.
        """
        self._settle([place for place, verdict in enumerate(self._verdicts) if verdict is None], answer)
        return self.carried(lost=True, past_dot=past_dot)

    def broken_off(self, reply: Reply, *, past_dot: bool) -> Carried:
        """No answer came; `reply` is our own."""
        for place, verdict in enumerate(self._verdicts):
            if verdict is None:
                self._verdicts[place] = Deferred(self.recipients[place], reply)
        return self.carried(lost=True, past_dot=past_dot)

    def carried(self, *, lost: bool = False, past_dot: bool = False) -> Carried:
        outcomes = tuple(verdict for verdict in self._verdicts if verdict is not None)
        assert len(outcomes) == len(self.recipients), "a recipient without a verdict"
        return Carried(outcomes, () if lost else tuple(self._again), lost, past_dot)

    def _settle(self, places: list[int], answer: Answer) -> None:
        reply = answer.reply()
        for place in places:
            if self._verdicts[place] is None:
                self._verdicts[place] = self._outcome(place, reply)

    def _outcome(self, place: int, reply: Reply) -> Outcome:
        address = self.recipients[place]
        if reply.is_positive:
            return Delivered(address, reply, self._remote)
        if reply.is_temporary:
            return Deferred(address, reply, self._remote)
        return Failed(address, reply, self._remote)


def header_block(content: bytes, limit_bytes: int = 65536) -> bytes:
    """The header section, its last CRLF included, at most `limit_bytes` of it."""
    if content.startswith(b"\r\n"):
        return b""
    end = content.find(b"\r\n\r\n", 0, limit_bytes)
    return content[:limit_bytes] if end < 0 else content[: end + 2]


def _mail(envelope: Envelope, content: bytes, capabilities: Capabilities) -> bytes:
    sender = envelope.reverse_path
    parts = [b"MAIL FROM:<%s>" % (b"" if sender is None else _written(sender, capabilities))]
    if capabilities.size:
        parts.append(b" SIZE=%d" % len(content))  # RFC 1870 section 6
    if capabilities.eight_bit_mime and (envelope.body is Body.EIGHT_BIT or not content.isascii()):
        # RFC 6152. To a server without 8BITMIME the content goes as it is: converting would break signatures, and
        # servers that are not 8-bit clean have died out (Exim, qmail and OpenSMTPD do the same; RFC 6152 section 3
        # would have us convert or bounce).
        parts.append(b" BODY=8BITMIME")
    if capabilities.smtputf8 and (envelope.smtputf8 or _is_international(envelope)):
        parts.append(b" SMTPUTF8")  # RFC 6531 section 3.4
    parts.append(b"\r\n")
    return b"".join(parts)


def _is_international(envelope: Envelope) -> bool:
    sender = envelope.reverse_path
    return (sender is not None and not sender.is_ascii) or any(
        not recipient.address.is_ascii for recipient in envelope.recipients
    )


def _written(address: Address, capabilities: Capabilities) -> bytes:
    """The address as this server can read it: a U-label domain becomes A-labels where SMTPUTF8 is missing."""
    if capabilities.smtputf8 or address.domain.isascii():
        return str(address).encode()
    try:
        return str(Address(address.local, address.domain_ascii)).encode()
    except idna.IDNAError:  # cannot be: the domain was parsed; never a reason to fall over
        return str(address).encode()
