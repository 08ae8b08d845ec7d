"""The client's side of an SMTP or LMTP connection, as a state machine over bytes (sans I/O). Pure.

In charge of what is said and in which order, and of what each answer means for each recipient. Never here: sockets,
clocks, pools, retries. Feed what the server sent with `receive`, send what `to_send` returns, and read `carried` when a
transaction is over. It promises one outcome for every recipient, whatever the server does, and that `past_dot` is
true from the instant at which the server may have taken the message without our knowing.

    GREETING -> EHLO [-> HELO] -> READY -> ENVELOPE -> CONTENT -> READY ... -> QUIT -> OVER

STARTTLS and AUTH will stand between EHLO and READY (`_introduced`).
Source: RFC 5321, RFC 2033 (LMTP), RFC 2920 (pipelining), RFC 1870 (SIZE), RFC 6152, RFC 6531.
Next: `delivery/transaction.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from delivery.answer import Answer, AnswerReader, GarbageAnswer
from delivery.capabilities import Capabilities
from delivery.transaction import Carried, Transaction
from mail.envelope import Envelope
from mail.reply import Reply
from mail.route import Speaks


class Phase(Enum):
    """Where the conversation stands."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    READY = auto()
    ENVELOPE = auto()
    CONTENT = auto()
    QUIT = auto()
    OVER = auto()


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
class Deadlines:
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
        "_plan",
        "_reader",
        "_speaks",
        "_transaction",
        "capabilities",
        "carried",
        "past_dot",
        "phase",
        "refusal",
        "remote",
    )

    def __init__(self, hostname: str, remote: str, speaks: Speaks = Speaks.SMTP) -> None:
        self.remote = remote
        self.phase = Phase.GREETING
        self.capabilities = Capabilities()
        self.carried: Carried | None = None
        self.refusal: Reply | None = None  # why the conversation ended before READY; 4xx
        self.past_dot = False
        self._hostname = hostname.encode("ascii", "replace")
        self._speaks = speaks
        self._reader = AnswerReader()
        self._out: list[bytes] = []
        self._expected: deque[_Verb] = deque((_Verb.GREETING,))
        self._plan: deque[tuple[_Verb, bytes]] = deque()  # what is still to be said, without pipelining
        self._transaction: Transaction | None = None
        self._needs_rset = False

    # What the driver calls

    def begin(self, envelope: Envelope, content: bytes) -> None:
        """Start a transaction; only when READY. `carried` may be set at once, when nothing needs to be asked."""
        assert self.phase is Phase.READY
        self.past_dot = False
        transaction = Transaction(envelope, content, self.capabilities, self.remote)
        self.carried = transaction.settled_before()
        if self.carried is not None:
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
            plan = self._plan
            if self._needs_rset:
                plan.append((_Verb.RSET, b"RSET\r\n"))
            plan.append((_Verb.MAIL, transaction.mail))
            plan.extend((_Verb.RCPT, rcpt) for rcpt in transaction.rcpts)
            plan.append((_Verb.DATA, b"DATA\r\n"))
            self._say_next()
        self._needs_rset = False

    @property
    def over(self) -> bool:
        """Nothing more will be said: the connection is to be closed."""
        return self.phase is Phase.OVER

    def receive(self, data: bytes, *, unsent: bool = False) -> bool:
        """Take what the server sent; whether anything came of it, or it is a piece of an answer. `unsent`: a part of
        what `to_send` returned has not left us yet.
        """
        if self.over:
            return False
        try:
            answers = self._reader.feed(data)
        except GarbageAnswer as error:
            self._break_off("4.5.0", str(error))
            return True
        for answer in answers:
            if self.phase is Phase.CONTENT and (self._out or (unsent and not answer.negative)):
                self._answered_early(answer)
            else:
                self._answer(answer)
            if self.over:
                break
        return bool(answers)

    def to_send(self) -> list[bytes]:
        """What has to be written now, once."""
        out = self._out
        if out:
            self._out = []
        return out

    def lost(self, reason: str, enhanced: str = "4.4.2") -> None:
        """The connection is gone or too slow; `reason` like "connection lost" or "timed out"."""
        if self.phase is not Phase.OVER:
            self._break_off(enhanced, reason)

    def quit(self) -> None:
        """Say goodbye; only when READY (RFC 5321 section 4.1.1.10)."""
        assert self.phase is Phase.READY
        self._ask(_Verb.QUIT, b"QUIT\r\n")
        self.phase = Phase.QUIT

    def allowed_seconds(self, deadlines: Deadlines) -> float:
        """How long the server may be silent now."""
        match self.phase:
            case Phase.GREETING:
                return deadlines.greeting_seconds
            case Phase.EHLO | Phase.HELO | Phase.READY:
                return deadlines.command_seconds
            case Phase.ENVELOPE:
                waiting_for_data = len(self._expected) == 1 and self._expected[0] is _Verb.DATA
                return deadlines.data_seconds if waiting_for_data else deadlines.command_seconds
            case Phase.CONTENT:
                return deadlines.dot_seconds
            case Phase.QUIT | Phase.OVER:
                return deadlines.quit_seconds

    # What answers mean

    def _answer(self, answer: Answer) -> None:
        if not self._expected:
            # In READY this is a server that lets go of an idle connection, mostly by 421.
            self._break_off("4.5.0", f"the server spoke unasked: {answer.reply()}")
            return
        verb = self._expected.popleft()
        if answer.code == 421 and verb is not _Verb.QUIT:  # RFC 5321 section 3.8: the server closes, at any point
            self._closing(verb, answer)
            return
        match verb:
            case _Verb.MAIL | _Verb.RCPT | _Verb.RSET:
                self._on_envelope(verb, answer)
            case _Verb.DATA:
                self._on_data(answer)
            case _Verb.DOT:
                self._on_dot(answer)
            case _Verb.EMPTY_DOT:
                self._finish(clean=False)  # nobody was named; the answer says nothing about anyone
            case _Verb.GREETING:
                if answer.code == 220:
                    self._ask(_Verb.EHLO, b"%s %s\r\n" % (self._hello, self._hostname))
                    self.phase = Phase.EHLO
                else:
                    self._refused("greeted us with", answer)
            case _Verb.EHLO:
                if answer.positive:
                    self.capabilities = Capabilities.parse(answer.lines)
                    self._introduced()
                elif answer.code >= 500 and self._speaks is Speaks.SMTP:
                    # RFC 5321 section 3.2: a server that does not know EHLO is asked by HELO.
                    self._ask(_Verb.HELO, b"HELO %s\r\n" % self._hostname)
                    self.phase = Phase.HELO
                else:
                    self._refused(f"answered {self._hello.decode()} with", answer)
            case _Verb.HELO:
                if answer.positive:
                    self._introduced()
                else:
                    self._refused("answered HELO with", answer)
            case _Verb.QUIT:
                self.phase = Phase.OVER

    @property
    def _hello(self) -> bytes:
        return b"EHLO" if self._speaks is Speaks.SMTP else b"LHLO"  # RFC 2033 section 4.1

    def _introduced(self) -> None:
        """Both sides know each other; STARTTLS or AUTH would be asked here, before READY."""
        self.phase = Phase.READY

    def _on_envelope(self, verb: _Verb, answer: Answer) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (answer.positive or answer.negative):
            self._break_off("4.5.0", f"the server answered {verb.value} with {answer.code}")
            return
        match verb:
            case _Verb.MAIL:
                transaction.on_mail(answer)
            case _Verb.RCPT:
                transaction.on_rcpt(answer)
            case _:
                if not answer.positive:  # RSET is never refused by a server in its right mind
                    self._break_off("4.5.0", f"the server answered RSET with {answer.code}")
                    return
        if self._expected:
            return
        if not transaction.goes_on or (self._plan and self._plan[0][0] is _Verb.DATA and not transaction.anyone):
            # Said one by one: nobody is left, DATA is not said (RFC 5321 section 3.3).
            self._plan.clear()
            self._finish(clean=False)
            return
        self._say_next()

    def _on_data(self, answer: Answer) -> None:
        transaction = self._transaction
        assert transaction is not None
        if answer.code == 354:
            if transaction.goes_on and transaction.anyone:
                self._out.extend(transaction.wire_content())
                # RFC 2033 section 4.2: LMTP answers once for each recipient it took.
                answers = transaction.taken if self._speaks is Speaks.LMTP else 1
                self._expected.extend([_Verb.DOT] * answers)
                self.phase = Phase.CONTENT
                self.past_dot = True
            elif self._speaks is Speaks.SMTP:
                # RFC 2920 section 3.1: nobody was taken and DATA was, so a lone dot ends it.
                self._ask(_Verb.EMPTY_DOT, b".\r\n")
            else:
                # RFC 2033 section 4.2 forbids this 354; how many answers a dot would bring nobody knows.
                self._finish(clean=False)
                self.phase = Phase.OVER
        elif answer.negative:
            transaction.on_data_refused(answer)
            self._finish(clean=False)
        else:
            self._break_off("4.5.0", f"the server answered DATA with {answer.code}")

    def _on_dot(self, answer: Answer) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not (answer.positive or answer.negative):
            self._break_off("4.5.0", f"the server answered the final dot with {answer.code}")
            return
        if self._speaks is Speaks.LMTP:
            transaction.on_dot_for_next(answer)
        else:
            transaction.on_dot_for_all(answer)
        if not self._expected:
            self._finish(clean=True)

    def _answered_early(self, answer: Answer) -> None:
        """An answer to the final dot while the content is still with us: nothing was taken. A refusal holds; but the
        content stays here, for the server may be waiting for a command and would read it as one.
        """
        self._out.clear()
        self.past_dot = False
        transaction = self._transaction
        assert transaction is not None
        if not answer.negative:
            self._break_off("4.5.0", f"the server took the content before it was sent: {answer.reply()}")
        elif answer.code == 421:
            self._closing(_Verb.DATA, answer)
        elif self._speaks is Speaks.LMTP:
            transaction.on_dot_for_next(answer)
            self._break_off("4.5.0", "the server answered before the content was sent")
        else:
            transaction.on_dot_for_all(answer)
            self._finish(clean=False)
            self.phase = Phase.OVER

    # Ways to end

    def _finish(self, *, clean: bool) -> None:
        """The transaction is over and the connection may carry the next, after an RSET unless it ended `clean`."""
        assert self._transaction is not None
        self.carried = self._transaction.carried()
        self._transaction = None
        self._needs_rset = not clean  # RFC 5321 section 4.1.1.4: after the final reply buffers are empty
        self.past_dot = False
        self.phase = Phase.READY

    def _refused(self, how: str, answer: Answer) -> None:
        """No conversation at all. A 5xx here is often about us and this hour (block lists), so it only defers."""
        reply = answer.reply()
        rest = reply.status.partition(".")[2]
        self.refusal = Reply(450, f"4.{rest}", f"{self.remote} {how} {reply}")
        self.phase = Phase.OVER

    def _closing(self, verb: _Verb, answer: Answer) -> None:
        """421: whoever has no verdict yet is deferred by it."""
        if self._transaction is not None:
            self.carried = self._transaction.closed_by(answer, past_dot=verb is _Verb.DOT)
            self._transaction = None
            self.past_dot = False
        else:
            self._refused(f"answered {verb.value} with", answer)
        self.phase = Phase.OVER

    def _break_off(self, enhanced: str, reason: str) -> None:
        """The conversation cannot go on: whoever has no verdict yet is deferred in our own words."""
        waiting_for = self._expected[0].value if self._expected else ""
        during = f" (waiting for the answer to {waiting_for})" if waiting_for else ""
        text = f"{self.remote}: {reason}{during}"
        if self.past_dot:
            # The one ambiguity of SMTP (RFC 1047): we say so.
            text += "; the message was sent whole and not acknowledged, so the recipient may see it twice"
        reply = Reply(451, enhanced, text)
        if self._transaction is not None:
            self.carried = self._transaction.broken_off(reply, past_dot=self.past_dot)
            self._transaction = None
        else:
            self.refusal = reply
        self.phase = Phase.OVER

    # Ways to speak

    def _ask(self, verb: _Verb, command: bytes) -> None:
        self._expected.append(verb)
        self._out.append(command)

    def _say_next(self) -> None:
        verb, command = self._plan.popleft()
        self._ask(verb, command)
