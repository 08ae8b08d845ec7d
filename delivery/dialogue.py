"""The client's side of an SMTP or LMTP connection, as a state machine over bytes (sans I/O). Pure.

In charge of what is said and in which order, and of what each answer means for each recipient. Never here: sockets,
clocks, pools, retries. Feed what the server sent with `receive`, send what `to_send` returns, and read `result` when a
transaction is over. It promises one outcome for every recipient, whatever the server does, and that `past_dot` is
true from the instant at which the server may have taken the message without our knowing.

    GREETING -> EHLO [-> HELO] -> READY -> ENVELOPE -> CONTENT -> READY ... -> QUIT -> CLOSED

STARTTLS and AUTH will stand between EHLO and READY (`_on_ehlo_done`).
Source: RFC 5321, RFC 2033 (LMTP), RFC 2920 (pipelining), RFC 1870 (SIZE), RFC 6152, RFC 6531.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from delivery.capabilities import Capabilities
from delivery.reply_parser import MalformedReply, ReplyParser, ServerReply
from delivery.transaction import Transaction, TransactionResult
from mail.envelope import Envelope
from mail.reply import Reply
from mail.route import RelayProtocol


class Phase(Enum):
    """Where the conversation stands."""

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
    EMPTY_DOT = "the final dot of nothing"
    QUIT = "QUIT"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the server may be silent, in seconds (RFC 5321 section 4.5.3.2)."""

    greeting_seconds: float = 300.0  # .1
    command_seconds: float = 300.0  # .2 MAIL, .3 RCPT; EHLO and RSET alike
    data_seconds: float = 120.0  # .4
    block_seconds: float = 180.0  # .5, for each part of the content that goes out
    dot_seconds: float = 600.0  # .6
    quit_seconds: float = 2.0


class Dialogue:
    """One connection. `remote` is the server's name for people, "mx.example.test[192.0.2.1]:25"."""

    __slots__ = (
        "_expected",
        "_hostname",
        "_needs_rset",
        "_out",
        "_parser",
        "_protocol",
        "_transaction",
        "_unsent_commands",
        "capabilities",
        "past_dot",
        "phase",
        "refusal",
        "remote",
        "result",
    )

    def __init__(self, hostname: str, remote: str, protocol: RelayProtocol = RelayProtocol.SMTP) -> None:
        self.remote = remote
        self.phase = Phase.GREETING
        self.capabilities = Capabilities()
        self.result: TransactionResult | None = None
        self.refusal: Reply | None = None  # why the conversation ended before READY; 4xx
        self.past_dot = False
        self._hostname = hostname.encode("ascii", "replace")
        self._protocol = protocol
        self._parser = ReplyParser()
        self._out: list[bytes] = []
        self._expected: deque[_Verb] = deque((_Verb.GREETING,))
        self._unsent_commands: deque[tuple[_Verb, bytes]] = deque()  # what is still to be said, without pipelining
        self._transaction: Transaction | None = None
        self._needs_rset = False

    # What the driver calls

    def start_transaction(self, envelope: Envelope, content: bytes) -> None:
        """Start a transaction; only when READY. `result` may be set at once, when nothing needs to be asked."""
        assert self.phase is Phase.READY
        self.past_dot = False
        transaction = Transaction(envelope, content, self.capabilities, self.remote)
        self.result = transaction.result_without_server()
        if self.result is not None:
            return
        self._transaction = transaction
        self.phase = Phase.ENVELOPE
        expected = self._expected
        if self.capabilities.pipelining:
            # RFC 2920 section 3.1: MAIL, RCPT and DATA may share a write; DATA is the last of its group.
            commands = [b"RSET\r\n"] if self._needs_rset else []
            if self._needs_rset:
                expected.append(_Verb.RSET)
            commands.append(transaction.mail)
            commands += transaction.rcpts
            commands.append(b"DATA\r\n")
            expected.append(_Verb.MAIL)
            expected.extend([_Verb.RCPT] * len(transaction.rcpts))
            expected.append(_Verb.DATA)
            self._out.append(b"".join(commands))
        else:
            unsent = self._unsent_commands
            if self._needs_rset:
                unsent.append((_Verb.RSET, b"RSET\r\n"))
            unsent.append((_Verb.MAIL, transaction.mail))
            unsent.extend((_Verb.RCPT, rcpt) for rcpt in transaction.rcpts)
            unsent.append((_Verb.DATA, b"DATA\r\n"))
            self._send_next()
        self._needs_rset = False

    @property
    def closed(self) -> bool:
        """Nothing more will be said: the connection is to be closed."""
        return self.phase is Phase.CLOSED

    def receive(self, data: bytes, *, unsent: bool = False) -> bool:
        """Take what the server sent; whether anything came of it, or it is a piece of an answer. `unsent`: a part of
        what `to_send` returned has not left us yet.
        """
        if self.closed:
            return False
        try:
            replies = self._parser.feed(data)
        except MalformedReply as error:
            self._abort("4.5.0", str(error))
            return True
        for reply in replies:
            if self.phase is Phase.CONTENT and (self._out or (unsent and not reply.negative)):
                self._on_early_reply(reply)
            else:
                self._on_reply(reply)
            if self.closed:
                break
        return bool(replies)

    def to_send(self) -> list[bytes]:
        """What has to be written now, once."""
        out = self._out
        if out:
            self._out = []
        return out

    def abort(self, reason: str, enhanced: str = "4.4.2") -> None:
        """The connection is gone or too slow; `reason` like "connection lost" or "timed out"."""
        if self.phase is not Phase.CLOSED:
            self._abort(enhanced, reason)

    def quit(self) -> None:
        """Say goodbye; only when READY (RFC 5321 section 4.1.1.10)."""
        assert self.phase is Phase.READY
        self._send(_Verb.QUIT, b"QUIT\r\n")
        self.phase = Phase.QUIT

    def timeout_seconds(self, timeouts: Timeouts) -> float:
        """How long the server may be silent now."""
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

    # What answers mean

    def _on_reply(self, reply: ServerReply) -> None:
        if not self._expected:
            # In READY this is a server that lets go of an idle connection, mostly by 421.
            self._abort("4.5.0", f"the server spoke unasked: {reply.to_reply()}")
            return
        verb = self._expected.popleft()
        if reply.code == 421 and verb is not _Verb.QUIT:  # RFC 5321 section 3.8: the server closes, at any point
            self._on_service_closing(verb, reply)
            return
        match verb:
            case _Verb.MAIL | _Verb.RCPT | _Verb.RSET:
                self._on_envelope(verb, reply)
            case _Verb.DATA:
                self._on_data(reply)
            case _Verb.DOT:
                self._on_dot(reply)
            case _Verb.EMPTY_DOT:
                self._finish_transaction(clean=False)  # nobody was named; the answer says nothing about anyone
            case _Verb.GREETING:
                if reply.code == 220:
                    self._send(_Verb.EHLO, b"%s %s\r\n" % (self._ehlo_verb, self._hostname))
                    self.phase = Phase.EHLO
                else:
                    self._fail_handshake("greeted us with", reply)
            case _Verb.EHLO:
                if reply.positive:
                    self.capabilities = Capabilities.parse(reply.lines)
                    self._on_ehlo_done()
                elif reply.code >= 500 and self._protocol is RelayProtocol.SMTP:
                    # RFC 5321 section 3.2: a server that does not know EHLO is asked by HELO.
                    self._send(_Verb.HELO, b"HELO %s\r\n" % self._hostname)
                    self.phase = Phase.HELO
                else:
                    self._fail_handshake(f"answered {self._ehlo_verb.decode()} with", reply)
            case _Verb.HELO:
                if reply.positive:
                    self._on_ehlo_done()
                else:
                    self._fail_handshake("answered HELO with", reply)
            case _Verb.QUIT:
                self.phase = Phase.CLOSED

    @property
    def _ehlo_verb(self) -> bytes:
        return b"EHLO" if self._protocol is RelayProtocol.SMTP else b"LHLO"  # RFC 2033 section 4.1

    def _on_ehlo_done(self) -> None:
        """Both sides know each other; STARTTLS or AUTH would be asked here, before READY."""
        self.phase = Phase.READY

    def _on_envelope(self, verb: _Verb, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (reply.positive or reply.negative):
            self._abort("4.5.0", f"the server answered {verb.value} with {reply.code}")
            return
        match verb:
            case _Verb.MAIL:
                transaction.on_mail(reply)
            case _Verb.RCPT:
                transaction.on_rcpt(reply)
            case _:
                if not reply.positive:  # RSET is never refused by a server in its right mind
                    self._abort("4.5.0", f"the server answered RSET with {reply.code}")
                    return
        if self._expected:
            return
        if not transaction.mail_accepted or (
            self._unsent_commands and self._unsent_commands[0][0] is _Verb.DATA and not transaction.has_accepted
        ):
            # Said one by one: nobody is left, DATA is not said (RFC 5321 section 3.3).
            self._unsent_commands.clear()
            self._finish_transaction(clean=False)
            return
        self._send_next()

    def _on_data(self, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if reply.code == 354:
            if transaction.mail_accepted and transaction.has_accepted:
                self._out.extend(transaction.dot_stuffed_content())
                # RFC 2033 section 4.2: LMTP answers once for each recipient it took.
                replies = transaction.accepted_count if self._protocol is RelayProtocol.LMTP else 1
                self._expected.extend([_Verb.DOT] * replies)
                self.phase = Phase.CONTENT
                self.past_dot = True
            elif self._protocol is RelayProtocol.SMTP:
                # RFC 2920 section 3.1: nobody was taken and DATA was, so a lone dot ends it.
                self._send(_Verb.EMPTY_DOT, b".\r\n")
            else:
                # RFC 2033 section 4.2 forbids this 354; how many answers a dot would bring nobody knows.
                self._finish_transaction(clean=False)
                self.phase = Phase.CLOSED
        elif reply.negative:
            transaction.on_data_refused(reply)
            self._finish_transaction(clean=False)
        else:
            self._abort("4.5.0", f"the server answered DATA with {reply.code}")

    def _on_dot(self, reply: ServerReply) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (reply.positive or reply.negative):
            self._abort("4.5.0", f"the server answered the final dot with {reply.code}")
            return
        if self._protocol is RelayProtocol.LMTP:
            transaction.on_dot_for_next(reply)
        else:
            transaction.on_dot_for_all(reply)
        if not self._expected:
            self._finish_transaction(clean=True)

    def _on_early_reply(self, reply: ServerReply) -> None:
        """An answer to the final dot while the content is still with us: nothing was taken. A refusal holds; but the
        content stays here, for the server may be waiting for a command and would read it as one.
        """
        self._out.clear()
        self.past_dot = False
        transaction = self._transaction
        assert transaction is not None
        if not reply.negative:
            self._abort("4.5.0", f"the server took the content before it was sent: {reply.to_reply()}")
        elif reply.code == 421:
            self._on_service_closing(_Verb.DATA, reply)
        elif self._protocol is RelayProtocol.LMTP:
            transaction.on_dot_for_next(reply)
            self._abort("4.5.0", "the server answered before the content was sent")
        else:
            transaction.on_dot_for_all(reply)
            self._finish_transaction(clean=False)
            self.phase = Phase.CLOSED

    # Ways to end

    def _finish_transaction(self, *, clean: bool) -> None:
        """The transaction is over and the connection may carry the next, after an RSET unless it ended `clean`."""
        assert self._transaction is not None
        self.result = self._transaction.result()
        self._transaction = None
        self._needs_rset = not clean  # RFC 5321 section 4.1.1.4: after the final reply buffers are empty
        self.past_dot = False
        self.phase = Phase.READY

    def _fail_handshake(self, how: str, reply: ServerReply) -> None:
        """No conversation at all. A 5xx here is often about us and this hour (block lists), so it only defers."""
        refusal = reply.to_reply()
        rest = refusal.status.partition(".")[2]
        self.refusal = Reply(450, f"4.{rest}", f"{self.remote} {how} {refusal}")
        self.phase = Phase.CLOSED

    def _on_service_closing(self, verb: _Verb, reply: ServerReply) -> None:
        """421: whoever has no verdict yet is deferred by it."""
        if self._transaction is not None:
            self.result = self._transaction.on_service_closing(reply, past_dot=verb is _Verb.DOT)
            self._transaction = None
            self.past_dot = False
        else:
            self._fail_handshake(f"answered {verb.value} with", reply)
        self.phase = Phase.CLOSED

    def _abort(self, enhanced: str, reason: str) -> None:
        """The conversation cannot go on: whoever has no verdict yet is deferred in our own words."""
        waiting_for = self._expected[0].value if self._expected else ""
        during = f" (waiting for the answer to {waiting_for})" if waiting_for else ""
        text = f"{self.remote}: {reason}{during}"
        if self.past_dot:
            # The one ambiguity of SMTP (RFC 1047): we say so.
            text += "; the message was sent whole and not acknowledged, so the recipient may see it twice"
        reply = Reply(451, enhanced, text)
        if self._transaction is not None:
            self.result = self._transaction.on_connection_lost(reply, past_dot=self.past_dot)
            self._transaction = None
        else:
            self.refusal = reply
        self.phase = Phase.CLOSED

    # Ways to speak

    def _send(self, verb: _Verb, command: bytes) -> None:
        self._expected.append(verb)
        self._out.append(command)

    def _send_next(self) -> None:
        verb, command = self._unsent_commands.popleft()
        self._send(verb, command)
