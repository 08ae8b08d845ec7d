"""Several listeners in one process, each with its own policy."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ingress.access_policy import parse_networks
from ingress.listener import Listener
from mail.service import ServiceError
from tests.support.servers.ingress import RunningIngress, SmtpClient


async def test_second_listener_has_its_own_policy() -> None:
    server = RunningIngress(relay_networks=[])
    (mx,) = server.ingress.listeners
    policy = replace(
        mx.policy,
        hostname="submission.example.test",
        relay_networks=parse_networks(["127.0.0.0/8"]),
        sender_must_resolve=False,
        max_size=1000,
    )
    server.ingress.listeners.append(Listener("mx", "ingress.submission_listen", "127.0.0.1:0", policy))
    await server.start()
    try:
        received = []
        for host, port in server.ingress.bound_addresses:
            reader, writer = await asyncio.open_connection(host, port)
            client = SmtpClient(reader, writer)
            session = [await client.read_reply()]
            for line in ("EHLO x", "MAIL FROM:<a@nowhere.test>", "MAIL FROM:<>", "RCPT TO:<x@remote.test>"):
                session.append(await client.command(line))
            received.append(session)
            writer.close()
    finally:
        await server.close()
    mx_session, submission_session = received
    assert mx_session[0] == "220 mx.example.test ESMTP eilpost"
    assert submission_session[0] == "220 submission.example.test ESMTP eilpost"
    assert "SIZE 26214400" in mx_session[1]
    assert "SIZE 1000" in submission_session[1]
    assert [reply[:9] for reply in mx_session[2:]] == ["550 5.1.8", "250 2.1.0", "550 5.7.1"]
    assert [reply[:9] for reply in submission_session[2:]] == ["250 2.1.0", "503 5.5.1", "250 2.1.5"]


async def test_address_in_use_names_the_key_of_its_listener() -> None:
    server = RunningIngress()
    (mx,) = server.ingress.listeners
    first = RunningIngress()
    await first.start()
    try:
        host, port = first.ingress.bound_addresses[0]
        server.ingress.listeners.append(replace(mx, setting="ingress.other", address=f"{host}:{port}"))
        with pytest.raises(ServiceError, match=r"^ingress\.other: .* EILPOST_INGRESS__OTHER=HOST:PORT$"):
            await server.start()
        host, port = server.ingress.bound_addresses[0]
        with pytest.raises(OSError, match="onnect"):  # the first listener is closed
            await asyncio.open_connection(host, port)
    finally:
        await first.close()
