"""Client side of one mail transaction: its commands, dot-stuffing, and one outcome per recipient. No I/O.

`delivery/client_session.py` sends the commands and passes the replies on.
Source: RFC 5321, RFC 1870, RFC 6152, RFC 6531.
"""

from __future__ import annotations

from dataclasses import dataclass

import idna

from delivery.capabilities import Capabilities
from delivery.courier import outcome_of
from delivery.reply_parser import ServerReply
from mail.address import Address
from mail.envelope import Body, Envelope
from mail.header_section import header_section
from mail.outcome import Deferred, Failed, Outcome
from mail.reply import Reply

# RFC 6531 section 3.5; RFC 1870 section 6.1; RFC 3030 section 3.
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "The next hop does not offer SMTPUTF8, which this message needs")
NEEDS_BINARYMIME = Reply(554, "5.6.3", "The message is BINARYMIME and cannot be converted for the next hop")

_TOO_MANY_RECIPIENTS = frozenset(("", "4.5.3", "5.5.3"))
HEADER_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """Result of a transaction. `retry_now`: indexes of recipients over the server's limit per transaction; they may be
    tried again at once and are Deferred in `outcomes`. `open`: indexes of the other recipients that this server
    certainly did not accept and another exchanger may be asked for. `dot_sent`: the server may have accepted the
    message although the connection was lost. `failure`: why the server lost the transaction, or refused it for now
    and would refuse another message too.
    """

    outcomes: tuple[Outcome, ...]
    retry_now: tuple[int, ...] = ()
    open: tuple[int, ...] = ()
    connection_lost: bool = False
    dot_sent: bool = False
    failure: Reply | None = None


class Transaction:
    """A transaction for one server's capabilities. `mail` and `rcpts` are commands with CRLF."""

    def __init__(self, envelope: Envelope, content: bytes, capabilities: Capabilities, remote: str) -> None:
        self.recipients = tuple(recipient.address for recipient in envelope.recipients)
        self._content = content
        self._remote = remote
        self._outcomes: list[Outcome | None] = [None] * len(self.recipients)
        self._accepted: list[int] = []  # indexes of accepted recipients
        self._next_dot = 0  # index into `_accepted` of the next reply to the final dot (LMTP)
        self._retry_now: list[int] = []
        self._unknown: set[int] = set()  # indexes of recipients that the server may have accepted the message for
        self._failure: Reply | None = None  # of the server
        self.mail_refused = False
        self._next_rcpt = 0

        self._fail_unsupported(envelope, content, capabilities)
        self._to_send = [index for index, outcome in enumerate(self._outcomes) if outcome is None]
        self.mail = _mail_command(envelope, content, capabilities) if self._to_send else b""
        self.rcpts = [
            b"RCPT TO:<%s>\r\n" % _encode_address(self.recipients[index], capabilities) for index in self._to_send
        ]

    def _fail_unsupported(self, envelope: Envelope, content: bytes, capabilities: Capabilities) -> None:
        """Fail recipients that the server cannot accept by its capabilities."""
        if capabilities.max_size is not None and len(content) > capabilities.max_size:
            text = f"The message has {len(content)} octets; {self._remote} accepts at most {capabilities.max_size}"
            self._fail_all(Reply(552, "5.3.4", text))  # RFC 1870 section 6.1 (3)
            return
        if envelope.body is Body.BINARY:
            self._fail_all(NEEDS_BINARYMIME)
            return
        if capabilities.smtputf8:
            return
        sender = envelope.reverse_path
        if (sender is not None and not sender.local.isascii()) or (
            envelope.smtputf8 and not header_section(content, HEADER_BYTES_MAX).isascii()
        ):
            self._fail_all(NEEDS_SMTPUTF8)
            return
        for index, address in enumerate(self.recipients):
            if not address.local.isascii():
                self._outcomes[index] = Failed(address, NEEDS_SMTPUTF8)

    def _fail_all(self, reply: Reply) -> None:
        self._outcomes = [Failed(address, reply) for address in self.recipients]

    # Called by the session before and while it sends

    def result_without_server(self) -> TransactionResult | None:
        """The result if no recipient is left to send, else None."""
        return None if self._to_send else self.result()

    @property
    def accepted_count(self) -> int:
        """The number of recipients that the server accepted."""
        return len(self._accepted)

    def dot_stuffed_content(self) -> list[bytes]:
        """The dot-stuffed content with the final dot; copied only if it changes."""
        content = self._content
        parts = []
        if content.startswith(b"."):
            parts.append(b".")
        if b"\r\n." in content:
            content = content.replace(b"\r\n.", b"\r\n..")  # RFC 5321 section 4.5.2
        parts.append(content)
        parts.append(b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n")
        return parts

    # Replies of the server

    def on_mail(self, server_reply: ServerReply) -> None:
        if server_reply.negative:
            self.mail_refused = True
            self._failure = _server_failure(server_reply)
            self._set_outcomes(self._to_send, server_reply)

    def on_rcpt(self, server_reply: ServerReply) -> None:
        index = self._to_send[self._next_rcpt]
        self._next_rcpt += 1
        if self.mail_refused:
            return  # a consequence of the refused MAIL (503)
        if server_reply.positive:
            self._accepted.append(index)
            return
        reply = server_reply.to_reply()
        if server_reply.code in (452, 552) and self._accepted and reply.enhanced in _TOO_MANY_RECIPIENTS:
            # RFC 5321 section 4.5.3.1.10: too many recipients for this transaction; treat 552 as 452.
            self._retry_now.append(index)
            reply = Reply(452, "4.5.3", reply.text)
        self._outcomes[index] = outcome_of(self.recipients[index], reply, self._remote)

    def on_data_refused(self, server_reply: ServerReply) -> None:
        if self._accepted:  # else a consequence of earlier refusals (503, 554)
            self._failure = _server_failure(server_reply)
        self.set_accepted_outcomes(server_reply)

    def set_accepted_outcomes(self, server_reply: ServerReply) -> None:
        """The outcome of all accepted recipients: the refusal of DATA, or the reply to the final dot."""
        self._set_outcomes(self._accepted, server_reply)

    def set_next_accepted_outcome(self, server_reply: ServerReply) -> None:
        """The outcome of the next accepted recipient: one of the replies to the final dot by LMTP."""
        self._set_outcomes(self._accepted[self._next_dot : self._next_dot + 1], server_reply)
        self._next_dot += 1

    def on_out_of_step(self, reply: Reply) -> None:
        """Which reply belongs to which recipient is unknown: those that failed are deferred with a local reply."""
        for index in self._to_send:
            if isinstance(self._outcomes[index], Failed):
                self._outcomes[index] = Deferred(self.recipients[index], reply)

    def on_service_closing(self, server_reply: ServerReply, *, dot_sent: bool) -> TransactionResult:
        """421: defer all recipients without an outcome. After the final dot it is a reply like any other 4xx."""
        self._failure = server_reply.to_reply()
        self._set_outcomes([index for index, outcome in enumerate(self._outcomes) if outcome is None], server_reply)
        return self.result(connection_lost=True, dot_sent=dot_sent)

    def on_connection_lost(self, reply: Reply, *, dot_sent: bool) -> TransactionResult:
        """No reply was received; `reply` is a local one."""
        self._failure = reply
        for index, outcome in enumerate(self._outcomes):
            if outcome is None:
                self._outcomes[index] = Deferred(self.recipients[index], reply)
                if dot_sent:
                    self._unknown.add(index)  # RFC 1047: another exchanger would deliver it a second time
        return self.result(connection_lost=True, dot_sent=dot_sent)

    def result(self, *, connection_lost: bool = False, dot_sent: bool = False) -> TransactionResult:
        outcomes = tuple(outcome for outcome in self._outcomes if outcome is not None)
        assert len(outcomes) == len(self.recipients), "a recipient without an outcome"
        retry_now = () if connection_lost else tuple(self._retry_now)
        closed = self._unknown.union(retry_now)
        still_open = tuple(
            index for index, outcome in enumerate(outcomes) if isinstance(outcome, Deferred) and index not in closed
        )
        return TransactionResult(outcomes, retry_now, still_open, connection_lost, dot_sent, self._failure)

    def _set_outcomes(self, indexes: list[int], server_reply: ServerReply) -> None:
        reply = server_reply.to_reply()
        for index in indexes:
            if self._outcomes[index] is None:
                self._outcomes[index] = outcome_of(self.recipients[index], reply, self._remote)


def _server_failure(server_reply: ServerReply) -> Reply | None:
    """The reply to MAIL or DATA, if it is about the server, so that another message would be refused too: RFC 3463
    section 3.4, mail system status. 4.2.x and 4.7.x (greylisting) are about a recipient, sender or client.
    """
    reply = server_reply.to_reply()
    return reply if reply.enhanced.startswith("4.3.") else None


def _mail_command(envelope: Envelope, content: bytes, capabilities: Capabilities) -> bytes:
    sender = envelope.reverse_path
    parts = [b"MAIL FROM:<%s>" % (b"" if sender is None else _encode_address(sender, capabilities))]
    if capabilities.size:
        parts.append(b" SIZE=%d" % len(content))  # RFC 1870 section 6
    if capabilities.eight_bit_mime and (envelope.body is Body.EIGHT_BIT or not content.isascii()):
        # RFC 6152. Without 8BITMIME the content is sent unchanged, as Exim, qmail and OpenSMTPD do, although RFC 6152
        # section 3 demands to convert or bounce: conversion breaks signatures, and servers are 8-bit clean today.
        parts.append(b" BODY=8BITMIME")
    if capabilities.smtputf8 and (envelope.smtputf8 or _is_international(envelope)):
        parts.append(b" SMTPUTF8")  # RFC 6531 section 3.4
    return b"".join(parts) + b"\r\n"


def _is_international(envelope: Envelope) -> bool:
    sender = envelope.reverse_path
    return (sender is not None and not sender.is_ascii) or any(
        not recipient.address.is_ascii for recipient in envelope.recipients
    )


def _encode_address(address: Address, capabilities: Capabilities) -> bytes:
    """The address for this server: without SMTPUTF8 the domain is converted to A-labels."""
    if capabilities.smtputf8 or address.domain.isascii():
        return str(address).encode()
    try:
        return str(Address(address.local, address.domain_ascii)).encode()
    except idna.IDNAError:  # not expected: the domain was validated when it was parsed
        return str(address).encode()
