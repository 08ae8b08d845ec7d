"""The demo's sink accepts the mail for other domains and prints it."""

from __future__ import annotations

import asyncio
import io
import smtplib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from eilpost import demo
from eilpost.demo_sink import DemoSink, sink_port
from eilpost.output import Output
from mail.settings_file import load


@asynccontextmanager
async def _running(sink: DemoSink) -> AsyncIterator[None]:
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(sink.run(ready.set, stop))
    await ready.wait()
    try:
        yield
    finally:
        stop.set()
        await running


def _send(port: int, recipients: list[str], *messages: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        for message in messages:
            client.sendmail("bob@example.test", recipients, message)


async def test_a_message_is_one_line() -> None:
    stream = io.StringIO()
    sink = DemoSink(0, Output(stream))
    long, escape = f"Subject: {'x' * 100}\r\n\r\n", "Subject: =?utf-8?q?=1b[31mred?=\r\n\r\n"
    async with _running(sink):
        assert sink.listens
        recipients = ["a@elsewhere.test", "b@elsewhere.test"]
        await asyncio.to_thread(_send, sink.port, recipients, "Subject: Hello\r\n\r\nHi\r\n", "\r\n", long, escape)
    first, *others = stream.getvalue().splitlines()
    assert first == ('sink: message 1: <bob@example.test> -> <a@elsewhere.test> and 1 more, 22 B, subject "Hello"')
    assert others[0].endswith(", no subject")
    assert others[1].endswith(f'subject "{"x" * 57}..."')
    assert "\x1b" not in others[2]


async def test_many_messages_in_a_second_are_counted_in_one_line() -> None:
    stream = io.StringIO()
    sink = DemoSink(0, Output(stream))
    async with _running(sink):
        for _ in range(100):
            sink.message("bob@example.test", ["a@elsewhere.test"], b"\r\n")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21
    assert lines[-1] == "sink: 80 more, message 100 is the last"


async def test_a_port_in_use_is_printed_and_the_demo_runs() -> None:
    stream = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        sink = DemoSink(port := occupied.getsockname()[1], Output(stream))
        async with _running(sink):
            assert not sink.listens
    assert f"sink: cannot listen on 127.0.0.1:{port}: the port is in use;" in stream.getvalue()


def test_the_sink_runs_only_where_the_file_of_the_demo_relays_to_it(tmp_path: Path) -> None:
    path = demo.create_files(tmp_path)
    assert sink_port(path, load(path, {})) == 2627
    relay = "smtp://127.0.0.1:2626"  # as docs/load.md sets it
    assert sink_port(path, load(path, {"EILPOST_DELIVERY__RELAY": relay})) is None
    for foreign in ("", "smtp://relay.example.test:25", "lmtp://127.0.0.1:2627"):
        path.write_text(demo.CONFIGURATION.replace("smtp://127.0.0.1:2627", foreign))
        assert sink_port(path, load(path, {})) is None
