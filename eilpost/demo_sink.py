"""SMTP sink of the demo: it accepts the mail for other domains and prints a line for each message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.errors import MessageError
from email.parser import BytesHeaderParser
from email.policy import default
from pathlib import Path

from eilpost.format import format_bytes
from eilpost.load.sink import Sink
from eilpost.output import Output
from eilpost.wiring import relay_route
from mail.route import RelayProtocol
from mail.service import listen_failure
from mail.settings import Settings
from mail.settings_file import load

_HOST = "127.0.0.1"
_LINES_PER_SECOND = 20
_HEADER_BYTES = 64_000
_SUBJECT_CHARACTERS = 60


def sink_port(configuration: Path, settings: Settings) -> int | None:
    """The port of `delivery.relay` if the demo's file, not the environment, sets it to a port of 127.0.0.1."""
    relay = relay_route(settings)
    is_sink = relay is not None and relay.host == _HOST and relay.protocol is RelayProtocol.SMTP
    return relay.port if relay is not None and is_sink and relay == relay_route(load(configuration, {})) else None


class DemoSink:
    """Runs as a service's `support`, so that it stops after delivery."""

    name = "sink"

    def __init__(self, port: int, output: Output | None = None) -> None:
        self.port = port
        self.listens = False
        self.count = 0
        self._output = output or Output()
        self._printed = 0  # lines in the current second
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Accept messages until `stop`; if the port is in use, print that instead."""
        sink = Sink(self, port=self.port)
        try:
            await sink.start()
        except OSError as error:
            self._output.write((f"sink: cannot listen on {_HOST}:{self.port}: {listen_failure(error)};", "yellow"))
            self._output.write(("sink: mail for other domains goes to the server that listens there", "yellow"))
        else:
            self.listens = True
        self.port = sink.port
        ready()
        await stop.wait()
        await sink.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._next_second()

    def recipient(self, address: str) -> bytes | None:  # noqa: ARG002
        """Accept every recipient."""
        return None

    def message(self, sender: str, recipients: list[str], content: bytes) -> bytes | None:
        """Print the message, or count it if too many lines were printed in this second."""
        self.count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1, self._next_second)
        self._printed += 1
        if self._printed <= _LINES_PER_SECOND:
            others = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
            parts = f"<{sender}> -> <{recipients[0]}>{others}, {format_bytes(len(content))}, {_subject(content)}"
            self._output.write((f"sink: message {self.count}: {parts}", ""))
        return None

    def _next_second(self) -> None:
        if self._printed > _LINES_PER_SECOND:
            count = self._printed - _LINES_PER_SECOND
            self._output.write((f"sink: {count:,} more, message {self.count} is the last", ""))
        self._printed, self._timer = 0, None


def _subject(content: bytes) -> str:
    try:
        subject = str(BytesHeaderParser(policy=default).parsebytes(content[:_HEADER_BYTES])["Subject"] or "")
    except (MessageError, ValueError, LookupError):
        subject = ""
    shortened = subject if len(subject) <= _SUBJECT_CHARACTERS else subject[: _SUBJECT_CHARACTERS - 3] + "..."
    return f'subject "{shortened}"' if shortened else "no subject"
