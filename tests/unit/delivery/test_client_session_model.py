"""The client session against a model server: strict about the order of commands, free in its replies, unreliable.

The server accepts what RFC 5321 allows and knows for whom it took responsibility. For every recipient the outcome is
`Delivered` if and only if the client got the 250 of that recipient's content, and `Failed` only after a 5xx.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from delivery.client_session import ClientSession, Phase
from mail.outcome import Deferred, Delivered, Failed
from tests.support.builders.delivery import envelope

ENVELOPE_CODES = st.sampled_from([250, 250, 250, 250, 450, 550])


class ModelServer:
    """Reads octets, checks them, and queues replies whose codes are given to `step`."""

    def __init__(self, *, pipelining: bool) -> None:
        self.pipelining = pipelining
        self.input = b""
        self.replies = b""
        self.greeted = False
        self.mail = False
        self.accepted: list[int] = []  # recipient numbers of the transaction
        self.refused: dict[int, int] = {}  # recipient number to code
        self.mail_code = self.data_code = 0
        self.in_data = False
        self.taken: dict[int, bytes] = {}  # recipient number to content
        self.dot_code = 0
        self.quit = False

    def has_command(self) -> bool:
        return (b"\r\n.\r\n" in b"\r\n" + self.input) if self.in_data else b"\r\n" in self.input

    def step(self, code: int) -> None:
        """Handle one command with the reply `code`, or the content."""
        if self.in_data:
            content, _, self.input = (b"\r\n" + self.input).partition(b"\r\n.\r\n")
            content = content[2:] + b"\r\n" if content else b""
            self.in_data = self.mail = False
            self.dot_code = code
            if code == 250:
                self.taken = dict.fromkeys(self.accepted, content.replace(b"\r\n.", b"\r\n").removeprefix(b"."))
            self.reply(code)
            return
        line, _, self.input = self.input.partition(b"\r\n")
        verb = line[:4].upper()
        assert self.pipelining or not self.input, "commands were pipelined"
        match verb:
            case b"EHLO":
                self.greeted = True
                self.replies += b"250-far.test\r\n250 PIPELINING\r\n" if self.pipelining else b"250 far.test\r\n"
            case b"RSET":
                self.mail = False
                self.reply(250)
            case b"MAIL":
                assert self.greeted
                assert not self.mail, "nested MAIL"
                self.mail = code == 250
                self.mail_code = code
                self.reply(code)
            case b"RCPT":
                assert self.mail or self.pipelining
                number = int(line.split(b"<u")[1].split(b"@")[0])
                if not self.mail:
                    self.reply(503)
                    return
                if code == 250:
                    self.accepted.append(number)
                else:
                    self.refused[number] = code
                self.reply(code)
            case b"DATA":
                assert self.mail or self.pipelining
                if not self.mail or not self.accepted:
                    assert self.pipelining
                    self.reply(503)
                    return
                self.data_code = 354 if code == 250 else code
                self.in_data = code == 250
                self.reply(self.data_code)
            case b"QUIT":
                self.quit = True
                self.reply(221)
            case _:
                raise AssertionError(f"unknown command {line!r}")

    def reply(self, code: int) -> None:
        self.replies += b"%d text\r\n" % code

    def new_transaction(self) -> None:
        self.accepted, self.refused, self.taken = [], {}, {}
        self.mail_code = self.data_code = self.dot_code = 0


class ClientSessionModel(RuleBasedStateMachine):
    session: ClientSession | None = None
    count = 0

    @precondition(lambda self: not self.is_alive)
    @rule(pipelining=st.booleans(), greeted=st.booleans())
    def connect(self, pipelining: bool, greeted: bool) -> None:
        self.server = ModelServer(pipelining=pipelining)
        self.session = ClientSession("us.test", "far.test[192.0.2.1]:25")
        self.session.receive(b"220 far.test\r\n")
        self.count = 0  # recipients of the transaction, 0: none
        self.content = b""
        self.lost = False
        if greeted:
            self.write()
            self.server.step(250)
            self.read(200)

    @property
    def is_alive(self) -> bool:
        return self.session is not None and not self.session.closed

    @property
    def is_ready(self) -> bool:
        return self.session is not None and self.session.phase is Phase.READY and not self.count

    alive = precondition(lambda self: self.is_alive)
    ready = precondition(lambda self: self.is_ready)

    @ready
    @rule(count=st.integers(1, 3), lines=st.lists(st.sampled_from([b"a", b".", b"..b", b"", b"RSET"]), max_size=4))
    def start(self, count: int, lines: list[bytes]) -> None:
        self.server.new_transaction()
        self.count = count
        self.content = b"Subject: x\r\n\r\n" + b"".join(line + b"\r\n" for line in lines)
        self.session.start_transaction(envelope(*(f"u{number}@far.test" for number in range(count))), self.content)

    @ready
    @rule(count=st.integers(1, 3), codes=st.lists(ENVELOPE_CODES, max_size=8))
    def transact(self, count: int, codes: list[int]) -> None:
        """A transaction as far as there are codes for the server's replies."""
        self.start(count, [b".a"])
        for code in codes:
            self.write()
            if not self.is_alive or not self.server.has_command():
                return
            self.server.step(code)
            self.read(200)

    @alive
    @rule()
    def write(self) -> None:
        self.server.input += b"".join(self.session.to_send())
        self.session.on_output_written()

    @precondition(lambda self: self.is_alive and self.server.has_command())
    @rule(code=ENVELOPE_CODES)
    def serve(self, code: int) -> None:
        self.server.step(code)

    @alive
    @rule(octets=st.integers(1, 200))
    def read(self, octets: int) -> None:
        data, self.server.replies = self.server.replies[:octets], self.server.replies[octets:]
        self.session.receive(data)
        self.check_result()

    @precondition(lambda self: self.is_alive and bool(self.count))
    @rule()
    def lose_connection(self) -> None:
        self.lost = True
        self.session.abort("connection lost")
        self.check_result()

    @ready
    @rule()
    def quit(self) -> None:
        self.session.quit()
        self.write()
        self.server.step(221)
        self.session.receive(self.server.replies)
        assert self.server.quit
        assert self.session.closed

    def check_result(self) -> None:
        """The result of a finished transaction is what the server did."""
        result = self.session.result if self.count else None
        if result is None:
            return
        server = self.server
        assert len(result.outcomes) == self.count
        for number, outcome in enumerate(result.outcomes):
            match outcome:
                case Delivered():
                    assert server.taken[number] == self.content
                case Failed():
                    codes = (server.mail_code, server.refused.get(number, 0), server.data_code, server.dot_code)
                    assert any(code >= 500 for code in codes), codes
                    assert number not in server.taken
                case Deferred():
                    if number in server.taken:
                        assert self.lost
                        assert result.dot_sent, "the server may have the message"
                        assert number not in result.open, "another exchanger would deliver it again"
        assert set(result.open) <= set(range(self.count))
        assert not self.lost or result.connection_lost
        self.count = 0
        self.session.result = None

    @invariant()
    def a_closed_session_has_its_result(self) -> None:
        if self.session is not None and self.session.closed:
            assert self.count == 0


TestClientSession = ClientSessionModel.TestCase
TestClientSession.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
