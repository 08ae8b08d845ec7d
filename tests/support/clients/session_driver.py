"""Driver of an SMTP session without I/O: octets through the framer, actions out, results back."""

from __future__ import annotations

from typing import Any

from ingress import replies
from ingress import session as actions
from ingress.access_policy import ClientPolicy
from ingress.content import normalize
from ingress.esmtp import LONGEST_LINE
from ingress.framer import Framer
from ingress.policy import Policy
from ingress.session import Session, SessionEnd
from mail.reply import Reply
from tests.support.servers.ingress import make_snapshot

ACCEPTED = Reply(250, "2.0.0", "Ok: queued")


def make_policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {
        "hostname": "mx.example.test",
        "relay_networks": (),
        "sender_must_resolve": True,
        "sender_check_exempts_relay_networks": False,
        "vrfy_enabled": False,
        "max_size": 300,
        "max_recipients": 100,
        "max_errors": 20,
        "max_hops": 50,
        "alias_depth": 20,
        "command_seconds": 300.0,
        "data_seconds": 300.0,
    }
    return Policy(**values | changes)


class SessionDriver:
    """`results` has the result of an action that is not None."""

    def __init__(self, *, results: dict[type, Any] | None = None, **policy: Any) -> None:
        self.session = Session(make_policy(**policy), ClientPolicy(may_relay=False, sender_must_resolve=True))
        self.framer = Framer(LONGEST_LINE)
        self.snapshot = make_snapshot()
        self.results = {actions.Accept: (ACCEPTED, {}), **(results or {})}
        self.executed: list[object] = []
        self.contents: list[bytes] = []
        self.sent = b""
        self.end: SessionEnd | None = None
        self._waiting: actions.Actions | None = None  # for the end of data
        self._execute(self.session.greet(None))

    def send(self, data: bytes) -> bytes:
        """Feed octets; return what the server sent since then."""
        before = len(self.sent)
        self.framer.feed(data)
        while self.end is None:
            if self._waiting is not None:
                if not self.framer.data_is_complete:
                    break
                steps, self._waiting = self._waiting, None
                discarded = self.framer.data_is_discarded
                if discarded:
                    self.framer.skip_data()
                self._execute(steps, replies.TOO_LARGE if discarded else None)
            elif (line := self.framer.next_line()) is not None:
                self._execute(self.session.receive(line, self.snapshot))
            else:
                break
        return self.sent[before:]

    def command(self, line: str) -> str:
        return self.send(line.encode() + b"\r\n").decode().rstrip()

    def _execute(self, steps: actions.Actions, result: object = None) -> None:
        while True:
            try:
                action = steps.send(result)
            except StopIteration:
                return
            self.executed.append(action)
            result = self.results.get(type(action))
            match action:
                case Reply():
                    self.sent += action.to_bytes()
                case actions.Refused():
                    self.sent += action.reply.to_bytes()
                case actions.ReadContent():
                    self.framer.begin_data(action.bytes_max)
                    self._waiting = steps
                    return
                case actions.Accept():
                    self.contents.append(bytes(normalize(self.framer.take_data())))
                case actions.Close():
                    self.end = action.end
                case _:
                    pass  # `results` has what the driver would find
