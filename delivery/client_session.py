"""SMTP and LMTP client as a sans-I/O state machine: `receive` bytes, send `to_send()`, read `result`.

A finished transaction has one outcome per recipient; `dot_sent` is true from the writing of the final dot, when the
server may have accepted the message, to its reply.

    GREETING -> EHLO [-> HELO] -> READY -> ENVELOPE -> CONTENT -> READY -> QUIT -> CLOSED

Source: RFC 5321, RFC 2033 (LMTP), RFC 2920 (pipelining), RFC 1870 (SIZE), RFC 6152, RFC 6531.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from delivery.capabilities import Capabilities
from delivery.handshake import Handshake, HandshakeFailure, HandshakeStep
from delivery.peer import Credentials, TlsPolicy
from delivery.reply_parser import MalformedReply, ReplyParser, ServerReply
from delivery.timeouts import Timeouts
from delivery.transaction import Transaction, TransactionResult
from mail.envelope import Envelope
from mail.reply import Reply
from mail.route import RelayProtocol

GROUP_BYTES = 32768  # of pipelined commands that are sent before their replies


class Phase(Enum):
    """State of the connection."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    READY = auto()
    ENVELOPE = auto()
    CONTENT = auto()
    QUIT = auto()
    CLOSED = auto()


class _Verb(Enum):
    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "the final dot"
    EMPTY_DOT = "the final dot of empty content"
    QUIT = "QUIT"


_HANDSHAKE_COMMANDS = {
    HandshakeStep.EHLO: (_Verb.EHLO, Phase.EHLO),
    HandshakeStep.HELO: (_Verb.HELO, Phase.HELO),
}


class ClientSession:
    """Protocol state of one connection. `remote` is the server as shown to people, "mx.example.test[192.0.2.1]:25".
    `own_names`: of this server; one that greets with such a name is this server.
    """

    def __init__(
        self,
        hostname: str,
        remote: str,
        protocol: RelayProtocol = RelayProtocol.SMTP,
        own_names: frozenset[str] = frozenset(),
        *,
        tls: TlsPolicy = TlsPolicy.NONE,
        credentials: Credentials | None = None,
        may_pipeline: bool = True,
    ) -> None:
        self.remote = remote
        self.phase = Phase.GREETING
        self.result: TransactionResult | None = None
        self.failure: HandshakeFailure | None = None  # why the connection cannot be used for a transaction
        self.dot_sent = False
        self.is_stalled = False  # it did not reply to a command of the envelope in time
        self.is_pipelined = False  # the last group had several commands
        self._handshake = Handshake(hostname, remote, protocol, own_names, tls, credentials)
        self._may_pipeline = may_pipeline
        self._protocol = protocol
        self._parser = ReplyParser()
        self._out: list[bytes] = []
        self._expected: deque[_Verb] = deque((_Verb.GREETING,))
        self._unsent_commands: deque[tuple[_Verb, bytes]] = deque()  # of the transaction, beyond the current group
        self._transaction: Transaction | None = None
        self._refused: Transaction | None = None  # ended before its content by the replies that are being processed
        self._closing: ServerReply | None = None  # 421 of LMTP to the final dot, for one recipient
        self._needs_rset = False

    # Called by the driver

    @property
    def capabilities(self) -> Capabilities:
        """Of the server, once READY."""
        return self._handshake.capabilities

    def start_transaction(self, envelope: Envelope, content: bytes) -> None:
        """Start a transaction; only when READY. `result` is set at once if no recipient can be sent."""
        assert self.phase is Phase.READY
        self.dot_sent = False
        transaction = Transaction(envelope, content, self.capabilities, self.remote)
        self.result = transaction.result_without_server()
        if self.result is not None:
            return
        self._transaction = transaction
        self.phase = Phase.ENVELOPE
        commands = [(_Verb.RSET, b"RSET\r\n")] if self._needs_rset else []
        commands.append((_Verb.MAIL, transaction.mail))
        commands += [(_Verb.RCPT, rcpt) for rcpt in transaction.rcpts]
        commands.append((_Verb.DATA, b"DATA\r\n"))
        self._needs_rset = False
        self._unsent_commands.extend(commands)
        self._send_next()

    @property
    def closed(self) -> bool:
        """No more commands will be sent: the driver must close the connection."""
        return self.phase is Phase.CLOSED

    def receive(self, data: bytes) -> bool:
        """Process bytes from the server. Returns whether they completed a reply."""
        if self.closed:
            return False
        malformed: MalformedReply | None = None
        try:
            replies = self._parser.feed(data)
        except MalformedReply as error:
            replies, malformed = error.replies, error
        self._refused = None
        for reply in replies:
            if self._out and reply.code != 421:
                # The command or content that this would reply to was not sent yet.
                what = "content" if self.phase is Phase.CONTENT else "command"
                self._on_out_of_step(f"replied before the {what} was sent: {reply.to_reply()}")
            elif self.phase is Phase.CONTENT and not self.dot_sent:
                self._on_early_reply(reply)
            else:
                self._on_reply(reply)
            if self.closed:
                break
        if malformed is None:
            return bool(replies)
        if not self.closed:
            self._on_out_of_step(str(malformed))
        return True

    def to_send(self) -> list[bytes]:
        """Take the bytes to write now."""
        out, self._out = self._out, []
        return out

    def on_output_written(self) -> None:
        """The driver has passed all output of `to_send` to the transport."""
        if self.phase is Phase.CONTENT and not self._out:
            self.dot_sent = True

    def receive_last(self, data: bytes) -> None:
        """Process what the server sent before a write failed. While the content is sent it is a reply to it; in the
        envelope it only explains the loss, because the command was not sent.
        """
        if self.phase is not Phase.ENVELOPE:
            self.receive(data)
            return
        try:
            replies = self._parser.feed(data)
        except MalformedReply:
            return
        if replies:
            self.abort(f"connection lost, after the reply {replies[0].to_reply()}")

    def quit(self) -> None:
        """Send QUIT; only when READY (RFC 5321 section 4.1.1.10)."""
        assert self.phase is Phase.READY
        self._send(_Verb.QUIT, b"QUIT\r\n")
        self.phase = Phase.QUIT

    def timeout_seconds(self, timeouts: Timeouts) -> float:
        """Time-out for the server's next reply."""
        match self.phase:
            case Phase.GREETING:
                return timeouts.greeting_seconds
            case Phase.EHLO | Phase.HELO | Phase.READY:
                return timeouts.command_seconds
            case Phase.ENVELOPE:
                waiting_for_data = len(self._expected) == 1 and self._expected[0] is _Verb.DATA
                return timeouts.data_seconds if waiting_for_data else timeouts.command_seconds
            case Phase.CONTENT:
                return timeouts.dot_seconds
            case Phase.QUIT | Phase.CLOSED:
                return timeouts.quit_seconds

    # Replies

    def _on_reply(self, reply: ServerReply) -> None:
        if not self._expected:
            # In READY: a server that closes an idle connection, usually with 421.
            self._on_out_of_step(f"unexpected reply: {reply.to_reply()}", is_closing=reply.code == 421)
            return
        verb = self._expected.popleft()
        is_for_one = verb is _Verb.DOT and self._protocol is RelayProtocol.LMTP  # the replies for the others follow
        if reply.code == 421 and verb is not _Verb.QUIT and not is_for_one:
            self._on_service_closing(verb, reply)  # RFC 5321 section 3.8: the server closes, at any point
            return
        match verb:
            case _Verb.GREETING | _Verb.EHLO | _Verb.HELO:
                self._on_handshake(reply)
            case _Verb.MAIL | _Verb.RCPT | _Verb.RSET:
                self._on_envelope(verb, reply)
            case _Verb.DATA:
                self._on_data(reply)
            case _Verb.DOT:
                self._on_dot(reply)
            case _Verb.EMPTY_DOT:
                self._finish_transaction(clean=False)  # no recipient was accepted, so the reply concerns none
            case _Verb.QUIT:
                self.phase = Phase.CLOSED

    def _on_handshake(self, reply: ServerReply) -> None:
        match self._handshake.receive(reply):
            case HandshakeFailure() as failure:
                self.failure = failure
                self.phase = Phase.CLOSED
            case None:
                self.phase = Phase.READY
            case command:
                verb, self.phase = _HANDSHAKE_COMMANDS[self._handshake.step]
                self._send(verb, command)

    def _on_envelope(self, verb: _Verb, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (reply.positive or reply.negative):
            self._on_unexpected(verb, reply)
            return
        match verb:
            case _Verb.MAIL:
                transaction.on_mail(reply)
            case _Verb.RCPT:
                transaction.on_rcpt(reply)
            case _:
                if not reply.positive:
                    self._on_unexpected(verb, reply)
                    return
        if self._expected:
            return
        if transaction.mail_refused or (
            self._unsent_commands and self._unsent_commands[0][0] is _Verb.DATA and not transaction.accepted_count
        ):
            # Without pipelining, DATA is not sent when no recipient is left (RFC 5321 section 3.3).
            self._unsent_commands.clear()
            self._finish_transaction(clean=False)
            return
        self._send_next()

    def _on_data(self, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if reply.code == 354:
            if transaction.accepted_count:
                self._out.extend(transaction.dot_stuffed_content())
                # RFC 2033 section 4.2: LMTP replies once per accepted recipient.
                replies = transaction.accepted_count if self._protocol is RelayProtocol.LMTP else 1
                self._expected.extend([_Verb.DOT] * replies)
                self.phase = Phase.CONTENT
            elif self._protocol is RelayProtocol.SMTP:
                # RFC 2920 section 3.1: DATA was accepted without a recipient, so send a lone dot.
                self._send(_Verb.EMPTY_DOT, b".\r\n")
            else:
                # RFC 2033 section 4.2 forbids this 354; the number of replies to a dot is undefined.
                self._finish_transaction(clean=False)
                self.phase = Phase.CLOSED
        elif reply.negative:
            transaction.on_data_refused(reply)
            self._finish_transaction(clean=False)
        else:
            self._on_unexpected(_Verb.DATA, reply)

    def _on_dot(self, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (reply.positive or reply.negative):
            self._on_unexpected(_Verb.DOT, reply)
            return
        if self._protocol is RelayProtocol.LMTP:
            transaction.set_next_accepted_outcome(reply)
            self._closing = reply if reply.code == 421 else self._closing
        else:
            transaction.set_accepted_outcomes(reply)
        if self._expected:
            return
        if self._closing is not None:
            self._on_service_closing(_Verb.DOT, self._closing)
        else:
            self._finish_transaction(clean=True)

    def _on_early_reply(self, reply: ServerReply) -> None:
        """A reply to the final dot before the content was sent whole: nothing was delivered. A refusal is final. The
        rest is not sent, because the server may wait for a command and would parse it as commands.
        """
        transaction = self._transaction
        assert transaction is not None
        if not reply.negative:
            self._on_out_of_step(f"the server accepted the content before it was sent: {reply.to_reply()}")
        elif reply.code == 421:
            self._on_service_closing(_Verb.DATA, reply)
        elif self._protocol is RelayProtocol.LMTP:
            transaction.set_next_accepted_outcome(reply)
            self.abort("the server replied before the content was sent", "4.5.0")
        else:
            transaction.set_accepted_outcomes(reply)
            self._finish_transaction(clean=False)
            self.phase = Phase.CLOSED

    def _on_unexpected(self, verb: _Verb, reply: ServerReply) -> None:
        self._on_out_of_step(f"unexpected reply to {verb.value}: {reply.code}")

    def _on_out_of_step(self, reason: str, *, is_closing: bool = False) -> None:
        """The server sent one reply too many or too early, so which reply belongs to which command is unknown: no
        recipient fails because of one. `is_closing`: it only announces that it closes the connection.
        """
        transaction = self._transaction or self._refused
        if transaction is not None and not is_closing:
            transaction.on_out_of_step(Reply(451, "4.5.0", f"{self.remote}: {reason}"))
            if self._transaction is None:
                self.result = transaction.result()
        self.abort(reason, "4.5.0")

    # End of a transaction or connection

    def _finish_transaction(self, *, clean: bool) -> None:
        """The transaction ended; the next one starts with RSET unless this one ended `clean`."""
        assert self._transaction is not None
        self.result = self._transaction.result()
        self._refused = None if clean else self._transaction
        self._transaction = None
        self._needs_rset = not clean  # RFC 5321 section 4.1.1.4: after the final reply buffers are empty
        self.dot_sent = False
        self.phase = Phase.READY

    def _on_service_closing(self, verb: _Verb, reply: ServerReply) -> None:
        """421: defer every recipient without an outcome."""
        if self._transaction is not None:
            self.result = self._transaction.on_service_closing(reply, dot_sent=self.dot_sent)
            self._transaction = None
            self.dot_sent = False
        else:
            self.failure = self._handshake.failure(f"replied to {verb.value}:", reply)
        self._out.clear()
        self.phase = Phase.CLOSED

    def time_out(self, reason: str) -> None:
        """The server did not reply in time."""
        self.is_stalled = self.phase is Phase.ENVELOPE
        self.abort(reason)

    def abort(self, reason: str, enhanced: str = "4.4.2") -> None:
        """The connection failed: defer every recipient without an outcome, with a local reply. `reason`:
        "connection lost", "timed out" and the like.
        """
        if self.closed:
            return
        text = f"{self.remote}: {reason}"
        if self.phase is Phase.CONTENT and not self.dot_sent:
            text += " (while sending the content)"
        elif self._expected:
            text += f" (waiting for the reply to {self._expected[0].value})"
            if self.is_stalled and self.is_pipelined:
                text += " after pipelined commands"
        if self.dot_sent:
            # RFC 1047: the server may have accepted the message.
            text += "; the message was sent completely but not acknowledged, so the recipient may get it twice"
        reply = Reply(451, enhanced, text)
        if self._transaction is not None:
            self.result = self._transaction.on_connection_lost(reply, dot_sent=self.dot_sent)
            self._transaction = None
        else:
            self.failure = HandshakeFailure(reply)
        self._out.clear()
        self.phase = Phase.CLOSED

    # Sending

    def _send(self, verb: _Verb, command: bytes) -> None:
        self._expected.append(verb)
        self._out.append(command)

    def _send_next(self) -> None:
        """The next command, or with PIPELINING the next group: MAIL, RCPT and DATA may share a write, and DATA is the
        last one (RFC 2920 section 3.1, also about the bound).
        """
        group = b""
        may_pipeline = self._may_pipeline and self.capabilities.pipelining
        self.is_pipelined = may_pipeline and len(self._unsent_commands) > 1
        while self._unsent_commands and (not group or (may_pipeline and len(group) < GROUP_BYTES)):
            verb, command = self._unsent_commands.popleft()
            self._expected.append(verb)
            group += command
        self._out.append(group)
