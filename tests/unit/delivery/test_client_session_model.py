"""The client session against a model server: strict about the order of commands, free in its replies, unreliable.

The server accepts what RFC 5321 and RFC 2033 allow, may refuse content early, and knows for whom it took
responsibility. For every recipient the outcome is `Delivered` if and only if the client got the 250 of that recipient's
content, and `Failed` only after a 5xx. What the session sends is in a buffer of the transport first.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from delivery.client_session import ClientSession, Phase
from mail.outcome import Deferred, Delivered, Failed
from mail.route import RelayProtocol
from tests.support.builders.delivery import envelope

CODES = st.sampled_from([250, 250, 250, 250, 450, 550, 421])
DOT_CODES = st.lists(
    st.sampled_from([250, 250, 450, 550, 421]), min_size=3, max_size=3
)  # of LMTP; SMTP has the first one


class ModelServer:
    """Reads octets, checks them, and queues replies whose codes are given to `step`."""

    def __init__(self, *, pipelining: bool, lmtp: bool) -> None:
        self.pipelining = pipelining
        self.lmtp = lmtp
        self.input = b""
        self.replies = b""
        self.greeted = False
        self.mail = False
        self.accepted: list[int] = []  # recipient numbers of the transaction
        self.refused: dict[int, int] = {}  # recipient number to code
        self.mail_code = self.data_code = 0
        self.in_data = False
        self.taken: dict[int, bytes] = {}  # recipient number to content
        self.dot_codes: dict[int, int] = {}  # recipient number to code
        self.refused_early = False  # and the rest of the content is awaited: nothing else may follow
        self.closing = False  # 421
        self.quit = False

    def has_command(self) -> bool:
        if self.refused_early or self.closing:
            return False
        return (b"\r\n.\r\n" in b"\r\n" + self.input) if self.in_data else b"\r\n" in self.input

    def step(self, code: int, dot_codes: tuple[int, ...] = (250, 250, 250)) -> None:
        """Handle one command with the reply `code`, or the content with `dot_codes`."""
        if self.in_data:
            content, _, self.input = (b"\r\n" + self.input).partition(b"\r\n.\r\n")
            content = content[2:] + b"\r\n" if content else b""
            self.in_data = self.mail = False
            content = content.replace(b"\r\n.", b"\r\n").removeprefix(b".")
            self.reply_to_dot(dot_codes)
            self.taken = {number: content for number, code in self.dot_codes.items() if code == 250}
            return
        line, _, self.input = self.input.partition(b"\r\n")
        verb = line[:4].upper()
        assert self.pipelining or not self.input, "commands were pipelined"
        match verb:
            case b"EHLO" | b"LHLO":
                assert (verb == b"LHLO") is self.lmtp
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

    def reply_to_dot(self, codes: tuple[int, ...]) -> None:
        """RFC 2033 section 4.2: by LMTP one reply for each accepted recipient."""
        self.dot_codes = dict(zip(self.accepted, codes if self.lmtp else codes[:1] * 3, strict=False))
        for code in self.dot_codes.values() if self.lmtp else codes[:1]:
            self.reply(code)

    def refuse_early(self, codes: tuple[int, ...]) -> None:
        """Refuse the content before all of it has arrived."""
        self.refused_early = True
        self.reply_to_dot(codes)

    def read_input(self, octets: bytes) -> None:
        self.input += octets
        if self.refused_early and b"\r\n.\r\n" in b"\r\n" + self.input:
            _, _, self.input = (b"\r\n" + self.input).partition(b"\r\n.\r\n")
            self.refused_early = self.in_data = self.mail = False

    def reply(self, code: int) -> None:
        self.replies += b"%d text\r\n" % code
        self.closing |= code == 421

    def new_transaction(self) -> None:
        assert not self.refused_early, "a transaction after content that was not sent whole"
        assert not self.closing, "a transaction after 421"
        self.accepted, self.refused, self.taken, self.dot_codes = [], {}, {}, {}
        self.mail_code = self.data_code = 0


class ClientSessionModel(RuleBasedStateMachine):
    session: ClientSession | None = None
    count = 0

    @precondition(lambda self: not self.is_alive)
    @rule(pipelining=st.booleans(), lmtp=st.booleans(), greeted=st.booleans())
    def connect(self, pipelining: bool, lmtp: bool, greeted: bool) -> None:
        self.server = ModelServer(pipelining=pipelining, lmtp=lmtp)
        self.buffer = b""  # of the transport
        protocol = RelayProtocol.LMTP if lmtp else RelayProtocol.SMTP
        self.session = ClientSession("us.test", "far.test[192.0.2.1]:25", protocol)
        self.session.receive(b"220 far.test\r\n")
        self.count = 0  # recipients of the transaction, 0: none
        self.content = b""
        self.lost = False
        if greeted:
            self.exchange(250)

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
        self.content_is_sent = False  # at least the first octets
        self.content = b"Subject: x\r\n\r\n" + b"".join(line + b"\r\n" for line in lines)
        self.session.start_transaction(envelope(*(f"u{number}@far.test" for number in range(count))), self.content)

    @ready
    @rule(count=st.integers(1, 3), codes=st.lists(CODES, max_size=8), dot_codes=DOT_CODES)
    def transact(self, count: int, codes: list[int], dot_codes: list[int]) -> None:
        """A transaction as far as there are codes for the server's replies."""
        self.start(count, [b".a"])
        for code in codes:
            if not self.exchange(code, tuple(dot_codes)):
                return

    @ready
    @rule(count=st.integers(1, 3), reached=st.sampled_from(["354", "buffer", "kernel"]))
    def start_content(self, count: int, reached: str) -> None:
        """A transaction up to a 354 that is not read yet, or with the content in the transport or in the kernel."""
        self.start(count, [b".a"])
        while not self.server.in_data:
            self.read(200)
            self.write()
            self.drain(1000)
            self.server.step(250)
        if reached != "354":
            self.read(200)
            self.write()
        if reached == "kernel":
            self.drain(1000)

    def exchange(self, code: int, dot_codes: tuple[int, ...] = (250, 250, 250)) -> bool:
        self.write()
        self.drain(1000)
        if not self.is_alive or not self.server.has_command():
            return False
        self.server.step(code, dot_codes)
        self.read(200)
        return True

    @alive
    @rule()
    def write(self) -> None:
        out = self.session.to_send()
        self.content_is_sent = bool(self.count) and (
            self.content_is_sent or (bool(out) and self.session.phase is Phase.CONTENT)
        )
        self.buffer += b"".join(out)
        self.drain(0)

    @alive
    @rule(octets=st.integers(1, 200))
    def drain(self, octets: int) -> None:
        """The kernel accepts octets; when it has all, the driver tells the session."""
        octets_accepted, self.buffer = self.buffer[:octets], self.buffer[octets:]
        self.server.read_input(octets_accepted)
        if not self.buffer:
            self.session.on_output_written()

    @precondition(lambda self: self.is_alive and self.server.has_command())
    @rule(code=CODES, dot_codes=DOT_CODES)
    def serve(self, code: int, dot_codes: list[int]) -> None:
        self.server.step(code, tuple(dot_codes))

    @precondition(lambda self: self.is_alive and self.server.in_data and not self.server.has_command())
    @rule(codes=st.lists(st.sampled_from([450, 550, 421]), min_size=3, max_size=3))
    def refuse_early(self, codes: list[int]) -> None:
        if not (self.server.refused_early or self.server.closing):
            self.server.refuse_early(tuple(codes))

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
        self.drain(1000)
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
                    codes = (server.mail_code, server.refused.get(number, 0), server.data_code)
                    if not any(code >= 500 for code in codes):
                        assert server.dot_codes[number] >= 500
                        assert self.content_is_sent, "a reply to content of which nothing was sent"
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
TestClientSession.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
