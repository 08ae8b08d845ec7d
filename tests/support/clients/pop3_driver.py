"""Driver of a POP3 session without sockets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from mailstore.mailboxes import StoredMessage
from mailstore.pop3.command import LineTooLong
from mailstore.pop3.session import Action, Close, LogIn, LoginFailure, Send, SendMessage, Session, Update

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGES = [StoredMessage("A-0", 120, NOW), StoredMessage("B-0", 200, NOW, seen=True), StoredMessage("C-0", 30, NOW)]


class Pop3Driver:
    """Executes the session's actions as the server does, and records them."""

    def __init__(
        self,
        session: Session | None = None,
        denied: LoginFailure | None = None,
        messages: Sequence[StoredMessage] = MESSAGES,
    ) -> None:
        self.session = session or Session(clear_text_allowed=True)
        self.failure = denied
        self.messages = messages
        self.actions: list[Action] = []
        self.end: str | None = None
        self._output = bytearray()

    def send(self, line: bytes | LineTooLong) -> bytes:
        self._output.clear()
        self._execute(self.session.receive(line))
        return bytes(self._output)

    def _execute(self, actions: object) -> None:
        for action in actions:  # type: ignore[attr-defined]
            match action:
                case Send(data):
                    self._output += data
                case LogIn():
                    self.actions.append(action)
                    follow = (
                        self.session.log_in_failed(self.failure)
                        if self.failure
                        else self.session.logged_in(self.messages)
                    )
                    self._execute(follow)
                case SendMessage(number):
                    self.actions.append(action)
                    if action.top_lines is None:
                        self.session.message_sent(number)
                case Update():
                    self.actions.append(action)
                    self._execute(self.session.updated(done=True))
                case Close(end):
                    self.end = end
