"""Every message gets a result, for any replies and any lost connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from delivery.reply_parser import ServerReply
from eilpost.load.source import Source, Stage
from eilpost.load.supply import Supply
from eilpost.load.target import Target
from eilpost.load.workload import OutgoingMessage
from tests.support.servers.scripted_remote import Drop, ScriptedRemote, Stall, Then

A, B, C = "a@x.test", "b@x.test", "c@x.test"


class RecordedCalls:
    """A recorder that adds one line per call."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def dot(self, message: OutgoingMessage) -> None:
        pass

    def accepted(self, message: OutgoingMessage, answer: ServerReply) -> None:
        self.lines.append(f"accepted {' '.join(message.recipients)}")

    def refused(self, message: OutgoingMessage, answer: ServerReply, stage: Stage) -> None:
        self.lines.append(f"refused at {stage} {' '.join(message.recipients)}")

    def in_doubt(self, message: OutgoingMessage, error: BaseException) -> None:
        self.lines.append(f"in doubt {' '.join(message.recipients)}")

    def deferred(self, message: OutgoingMessage, answer: ServerReply, stage: Stage, seconds: float) -> bool:
        self.lines.append(f"deferred at {stage} {' '.join(message.recipients)}")
        return True

    def connection_refused(self, reason: str) -> None:
        self.lines.append("connection refused")

    def connection_lost(self, message: OutgoingMessage, stage: Stage, error: Exception) -> bool:
        self.lines.append(f"lost at {stage}")
        return True


async def send(
    remotes: Sequence[int],
    messages: Sequence[OutgoingMessage],
    *,
    per_connection: int = 100,
    reply_seconds: float = 20.0,
) -> tuple[list[str], Source]:
    calls = RecordedCalls()
    supply = Supply(iter(messages))
    source = Source(
        [Target("127.0.0.1", port) for port in remotes],
        supply,
        calls,
        sessions=1,
        per_connection=per_connection,
        back_off_seconds=(0.001, 0.01),
        reply_seconds=reply_seconds,
    )
    await source.run()
    assert supply.unsent == 0
    return calls.lines, source


def message(number: int = 0, recipients: tuple[str, ...] = (A,), size: int = 100) -> OutgoingMessage:
    return OutgoingMessage(
        number, "s@load.test", recipients, b"Subject: x\r\n\r\n", b"..dot\r\n" + b"x" * (size - 2) + b"\r\n"
    )


@pytest.mark.parametrize("extensions", [(), ("PIPELINING", "SIZE")], ids=["one by one", "pipelined"])
async def test_several_messages_are_sent_on_one_connection(extensions: tuple[str, ...]) -> None:
    async with ScriptedRemote(extensions=extensions) as remote:
        lines, source = await send([remote.port], [message(0), message(1, (A, B), 300_000)])
    assert lines == [f"accepted {A}", f"accepted {A} {B}"]
    assert source.connections == 1
    assert [len(target.rcpts) for target in remote.messages] == [1, 2]
    assert remote.messages[0].content.startswith(b"Subject: x\r\n\r\n.dot\r\n")
    assert ("SIZE=" in remote.messages[0].mail) == bool(extensions)
    assert remote.sessions[0].commands[-1].startswith("QUIT")


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)], ids=["one by one", "pipelined"])
@pytest.mark.parametrize(
    ("script", "recipients", "expected"),
    [
        ({"MAIL": ["451 no", "250 ok"]}, (A,), [f"deferred at MAIL {A}", f"accepted {A}"]),
        ({"MAIL": ["550 no"]}, (A, B), [f"refused at MAIL {A} {B}"]),
        ({"MAIL": ["421 bye", "250 ok"]}, (A,), [f"deferred at MAIL {A}", f"accepted {A}"]),
        ({"RCPT": ["550 no"]}, (A,), [f"refused at RCPT {A}"]),
        ({"RCPT": ["451 no", "250 ok"]}, (A,), [f"deferred at RCPT {A}", f"accepted {A}"]),
        (
            {"RCPT": ["250 ok", "550 no", "451 no", "250 ok"]},
            (A, B, C),
            [f"deferred at RCPT {C}", f"refused at RCPT {B}", f"accepted {A}", f"accepted {C}"],
        ),
        (
            {"RCPT": ["550 no", "451 no", "250 ok"]},
            (A, B),
            [f"deferred at RCPT {B}", f"refused at RCPT {A}", f"accepted {B}"],
        ),
        (
            {"RCPT": ["250 ok", "550 no", "250 ok"], "DATA": ["451 no", "354 go"]},
            (A, B, C),
            [f"refused at RCPT {B}", f"deferred at DATA {A} {C}", f"accepted {A} {C}"],
        ),
        (
            {"RCPT": ["451 no", "250 ok"], "DATA": ["554 no", "354 go"]},
            (A, B),
            [f"deferred at RCPT {A}", f"refused at DATA {B}", f"accepted {A}"],
        ),
        (
            {"RCPT": ["250 ok", "354 no", "250 ok"]},
            (A, B),
            [f"deferred at RCPT {B}", f"accepted {A}", f"accepted {B}"],
        ),
        ({"DATA": ["451 no", "354 go"]}, (A,), [f"deferred at DATA {A}", f"accepted {A}"]),
        ({"DATA": ["554 no"]}, (A,), [f"refused at DATA {A}"]),
        ({"DOT": ["451 no", "250 ok"]}, (A,), [f"deferred at dot {A}", f"accepted {A}"]),
        ({"DOT": ["554 no"]}, (A,), [f"refused at dot {A}"]),
        ({"DOT": ["421 bye", "250 ok"]}, (A,), [f"deferred at dot {A}", f"accepted {A}"]),
        ({"DOT": [Drop()]}, (A,), [f"in doubt {A}"]),
        ({"MAIL": [Drop(), "250 ok"]}, (A,), ["lost at MAIL", f"accepted {A}"]),
        ({"DATA": [Drop(), "354 go"]}, (A,), ["lost at DATA", f"accepted {A}"]),
        ({"GREETING": [Drop(), "220 hi"]}, (A,), ["lost at connect", f"accepted {A}"]),
        ({"GREETING": ["421 busy", "220 hi"]}, (A,), [f"deferred at connect {A}", f"accepted {A}"]),
        ({"GREETING": ["554 no", "220 hi"]}, (A,), ["connection refused", f"accepted {A}"]),
        ({"GREETING": [b"nonsense\r\n", "220 hi"]}, (A,), ["lost at connect", f"accepted {A}"]),
        ({"RCPT": ["550 no"], "RSET": [Drop()]}, (A,), [f"refused at RCPT {A}"]),
        ({"DOT": [Then("250 ok", Drop())]}, (A,), [f"accepted {A}"]),
    ],
    ids=str,
)
async def test_result_of_a_message_follows_from_the_replies(
    extensions: tuple[str, ...], script: Mapping[str, Any], recipients: tuple[str, ...], expected: list[str]
) -> None:
    async with ScriptedRemote(script, extensions=extensions) as remote:
        lines, _ = await send([remote.port], [message(0, recipients)])
        assert lines == expected
        again, _ = await send([remote.port], [message(1)])  # and the connection, or a new one, can be used
        assert again


async def test_silent_server_leaves_the_message_in_doubt() -> None:
    async with ScriptedRemote({"DOT": [Stall()]}) as remote:
        assert (await send([remote.port], [message()], reply_seconds=0.3))[0] == [f"in doubt {A}"]
    async with ScriptedRemote({"MAIL": [Stall(), "250 ok"]}) as remote:
        lines, _ = await send([remote.port], [message()], reply_seconds=0.3)
        assert lines == ["lost at MAIL", f"accepted {A}"]


async def test_data_without_recipients_is_ended_by_a_single_dot() -> None:
    """RFC 2920 section 3.1: a server may reply 354 although it accepted no recipient."""
    async with ScriptedRemote(
        {"RCPT": ["550 no", "250 ok"], "DATA": ["354 go"], "DOT": ["554 nobody", "250 ok"]}
    ) as remote:
        lines, source = await send([remote.port], [message(0), message(1)])
    assert lines == [f"refused at RCPT {A}", f"accepted {A}"]
    assert source.connections == 1


async def test_targets_are_used_in_rotation() -> None:
    async with ScriptedRemote() as first, ScriptedRemote() as second:
        messages = [message(number) for number in range(8)]
        _, source = await send([first.port, second.port], messages, per_connection=2)
        assert (len(first.messages), len(second.messages)) == (4, 4)
        assert source.connections == 4
        await first.stop()
        lines, _ = await send([first.port, second.port], messages[:3], per_connection=1)
    assert lines.count(f"accepted {A}") == 3
    assert lines.count("connection refused") == 3


async def test_connection_closed_while_idle_is_replaced() -> None:
    async with ScriptedRemote() as remote:
        calls = RecordedCalls()

        def slowly() -> Any:
            yield message(0)
            yield message(1)

        supply = Supply(slowly(), per_second=2)
        remote.script["DOT"] = [Then("250 ok", Drop()), "250 ok"]
        await Source([Target("127.0.0.1", remote.port)], supply, calls, sessions=1).run()
    assert calls.lines == [f"accepted {A}", f"accepted {A}"]
