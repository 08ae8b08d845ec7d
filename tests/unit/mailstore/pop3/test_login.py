"""POP3 login: no difference between unknown user and wrong password, and plain text on loopback only."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mailstore.memory import MemoryMailboxes
from mailstore.pop3 import connection as pop3_connection
from tests.support.clients.pop3 import LOG_IN, exchange, log_in, metric, running_pop3


async def test_unknown_user_and_wrong_password_get_the_same_replies(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        before = metric("eilpost_auth_total", service="pop3", result="invalid_credentials")
        wrong = await exchange(role, b"USER alice@example.test\r\nPASS no\r\n" * 4)
        unknown = await exchange(role, b"USER nobody@example.test\r\nPASS no\r\n" * 4)
        assert wrong == unknown
        assert wrong.count(b"-ERR [AUTH]") == 3
        assert metric("eilpost_auth_total", service="pop3", result="invalid_credentials") == before + 6


async def test_wrong_password_is_delayed(mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        slept.append(seconds)
        return await real(0, result)

    async with running_pop3(mailboxes, failure_delay=timedelta(seconds=2)) as role:
        monkeypatch.setattr(pop3_connection.asyncio, "sleep", sleep)
        for _ in range(3):  # a new session does not help
            await exchange(role, b"USER alice@example.test\r\nPASS no\r\n" * 3)
        assert slept == [2.0] * 3 + [4.0, 8.0] + [16.0] * 4
        _reader, writer = await log_in(role)  # the right password is never delayed
        writer.close()
        assert len(slept) == 9
        monkeypatch.undo()


async def test_plain_text_password_from_a_remote_address_is_not_checked(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pop3_connection, "is_loopback", lambda _ip: False)
    async with running_pop3(mailboxes) as role:
        answers = await exchange(role, LOG_IN + b"AUTH PLAIN AGEAYg==\r\nQUIT\r\n")
        assert answers.count(b"-ERR [AUTH]") == 3


@pytest.mark.parametrize(
    ("ip", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("192.0.2.1", False),
     ("::ffff:192.0.2.1", False), ("fe80::1%lo", False), ("2001:db8::1", False), ("", False)],
)  # fmt: skip
def test_loopback_addresses(ip: str, loopback: bool) -> None:
    assert pop3_connection.is_loopback(ip) is loopback
