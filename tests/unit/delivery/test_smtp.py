"""The SMTP courier against a scripted server, through every failure we could think of."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from delivery.connection import Connection
from delivery.dialogue import Deadlines, Dialogue
from delivery.hosts import Hosts, NoTarget, Target
from delivery.pool import Pool
from delivery.smtp import SmtpCourier
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, NoSuchDomain
from mail.route import ToMx
from mail.settings import DeliverySettings
from tests.support.delivering import CONTENT, delivery, relay
from tests.support.listener import listening, streams
from tests.support.remote import Drop, Remote, Stall, Then, Wait

QUICK = Deadlines(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)


class Names:
    """A resolver of hosts; an IP address answers itself."""

    def __init__(self, **hosts: AddressAnswer) -> None:
        self.hosts = hosts

    async def mx(self, domain: str) -> MxAnswer:
        raise AssertionError("the router has asked already")

    async def addresses(self, host: str) -> AddressAnswer:
        return self.hosts.get(host.partition(".")[0]) or IpAddresses((host,))


@asynccontextmanager
async def courier(
    resolver: Names | None = None, deadlines: Deadlines | None = None, **settings: Any
) -> AsyncIterator[SmtpCourier]:
    one = SmtpCourier(
        settings=DeliverySettings(**settings),
        hostname="us.test",
        resolver=resolver or Names(),
        deadlines=deadlines,
    )
    try:
        yield one
    finally:
        await one.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the remote has no event for each of these
            await asyncio.sleep(0.01)


def kinds(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]


async def test_messages_share_a_connection() -> None:
    async with Remote() as remote:
        async with courier() as smtp:
            for _ in range(3):
                outcomes = await smtp.carry(delivery(relay(remote.port), "a@r.test", "b@r.test"), CONTENT)
                assert kinds(outcomes) == ["Delivered", "Delivered"]
        assert len(remote.sessions) == 1
        assert remote.commands[-1] == "QUIT"
        assert [message.content for message in remote.messages] == [CONTENT] * 3
        assert remote.messages[0].rcpts == ["TO:<a@r.test>", "TO:<b@r.test>"]


async def test_a_connection_is_given_up_after_its_messages_and_after_its_idle_time() -> None:
    async with Remote() as remote, courier(messages_per_connection=2, idle=timedelta(seconds=0.1)) as smtp:
        for _ in range(3):
            await smtp.carry(delivery(relay(remote.port)), CONTENT)
        assert [session.commands.count("DOT") for session in remote.sessions] == [2, 1]
        await remote.until_said("QUIT")
        await until(lambda: all(session.commands[-1] == "QUIT" for session in remote.sessions))


async def test_a_large_message_survives() -> None:
    content = b"Subject: large\r\n\r\n" + b".dots and dots\r\n" * 300_000
    async with Remote() as remote, courier() as smtp:
        assert kinds(await smtp.carry(delivery(relay(remote.port), content=content), content)) == ["Delivered"]
        assert remote.messages[0].content == content


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
async def test_lmtp(extensions: tuple[str, ...]) -> None:
    script = {"RCPT": ["250 ok", "550 5.1.1 no", "250 ok"], "DOT": ["250 2.0.0 a", "452 4.2.2 full"]}
    async with Remote(script, lmtp=True, extensions=extensions) as remote, courier() as smtp:
        one = delivery(relay(remote.port, lmtp=True), "a@r.test", "b@r.test", "c@r.test")
        assert kinds(await smtp.carry(one, CONTENT)) == ["Delivered", "Failed", "Deferred"]
        assert remote.messages[0].rcpts == ["TO:<a@r.test>"]
        assert remote.commands[0] == "LHLO us.test"


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize(
    ("answer", "kind"), [("451 4.3.0 later", Deferred), ("554 5.7.1 never", Failed), ("421 4.3.2 closing", Deferred)]
)
async def test_a_refusal_at_each_verb(
    verb: str, answer: str, kind: type[Deferred | Failed], extensions: tuple[str, ...]
) -> None:
    script: dict[str, Any] = {verb: [answer, "354 go" if verb == "DATA" else "250 2.0.0 ok"]}
    if verb == "MAIL" and extensions:
        script |= {"RCPT": ["503 5.5.1 x", "250 ok"], "DATA": ["503 5.5.1 x", "354 go"]}
    async with Remote(script, extensions=extensions) as remote, courier() as smtp:
        (outcome,) = await smtp.carry(delivery(relay(remote.port)), CONTENT)
        assert isinstance(outcome, kind)
        assert str(outcome.reply) == answer
        assert outcome.remote == f"[127.0.0.1]:{remote.port}"
        # and the next message is none the worse for it
        assert kinds(await smtp.carry(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert len(remote.messages) == 1


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("trouble", [Drop(), Drop(reset=True), Stall(), "rubbish", Then("250-half", Drop())])
async def test_trouble_at_each_verb_defers(verb: str, trouble: Any) -> None:
    async with Remote({verb: [trouble]}) as remote, courier(deadlines=QUICK) as smtp:
        (outcome,) = await asyncio.wait_for(smtp.carry(delivery(relay(remote.port)), CONTENT), 5)
        assert isinstance(outcome, Deferred)
        assert outcome.remote is None
        assert f"[127.0.0.1]:{remote.port}" in outcome.reply.text
        assert ("see it twice" in outcome.reply.text) is (verb == "DOT")


async def test_too_many_recipients_take_several_transactions() -> None:
    script = {"RCPT": ["250 ok", "250 ok", "452 4.5.3 too many", "452 4.5.3 too many", "250 ok"]}
    async with Remote(script) as remote, courier() as smtp:
        names = [f"{name}@r.test" for name in "abcd"]
        assert kinds(await smtp.carry(delivery(relay(remote.port), *names), CONTENT)) == ["Delivered"] * 4
        assert [len(message.rcpts) for message in remote.messages] == [2, 2]


async def test_what_the_first_of_several_transactions_delivered_is_told_whatever_ends_the_second() -> None:
    async with Remote({"RCPT": ["250 ok", "452 4.5.3 too many", Stall()]}) as remote, courier() as smtp:
        task = asyncio.create_task(smtp.carry(delivery(relay(remote.port), "a@r.test", "b@r.test"), CONTENT))
        await remote.until(1)
        await until(lambda: len([command for command in remote.commands if command.startswith("RCPT")]) == 3)
        task.cancel()
        assert kinds(await task) == ["Delivered", "Deferred"]
        assert len(remote.messages) == 1


async def test_a_stale_connection_costs_a_reconnect() -> None:
    async with Remote({"MAIL": ["250 ok", Drop(), "250 ok"]}) as remote, courier() as smtp:
        await smtp.carry(delivery(relay(remote.port)), CONTENT)
        assert kinds(await smtp.carry(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert len(remote.sessions) == 2


async def test_a_reused_connection_lost_past_the_dot_is_not_repeated() -> None:
    async with Remote({"DOT": ["250 ok", Drop(), "250 ok"]}) as remote, courier() as smtp:
        await smtp.carry(delivery(relay(remote.port)), CONTENT)
        (outcome,) = await smtp.carry(delivery(relay(remote.port)), CONTENT)
        assert isinstance(outcome, Deferred)
        assert "see it twice" in outcome.reply.text
        assert len(remote.sessions) == 1


async def test_a_restarted_server_costs_no_deferral() -> None:
    remote = Remote()
    await remote.start()
    async with courier() as smtp:
        assert kinds(await smtp.carry(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        await remote.stop()
        carrying = asyncio.gather(*(smtp.carry(delivery(relay(remote.port)), CONTENT) for _ in range(10)))
        await asyncio.sleep(0.3)
        await remote.start()
        assert [kinds(outcomes) for outcomes in await carrying] == [["Delivered"]] * 10
    await remote.stop()


async def test_a_dead_site_is_left_alone_for_a_while() -> None:
    port = free_port()
    async with courier(dead_site=timedelta(seconds=0.3)) as smtp:
        (first,) = await smtp.carry(delivery(relay(port)), CONTENT)
        assert isinstance(first, Deferred)
        assert first.reply.enhanced == "4.4.1"
        async with Remote(port=port) as remote:
            (second,) = await smtp.carry(delivery(relay(port)), CONTENT)
            assert isinstance(second, Deferred)
            assert "Not tried" in second.reply.text
            assert remote.sessions == []
            await asyncio.sleep(0.4)
            assert kinds(await smtp.carry(delivery(relay(port)), CONTENT)) == ["Delivered"]


@pytest.mark.parametrize("trouble", [Stall(), Drop(), "421 4.7.0 not you"])
async def test_a_site_that_breaks_every_transaction_holds_nobody_for_long(trouble: Any) -> None:
    async with Remote({"MAIL": [trouble]}) as remote, courier(deadlines=QUICK) as smtp:
        carrying = [smtp.carry(delivery(relay(remote.port)), CONTENT) for _ in range(100)]
        outcomes = await asyncio.wait_for(asyncio.gather(*carrying), 10)
        assert all(kinds(outcome) == ["Deferred"] for outcome in outcomes)
        assert len(remote.sessions) <= 8


async def test_slow_start_and_the_limit_of_connections() -> None:
    async with Remote() as remote, courier(connections_per_site=6) as smtp:
        carrying = [smtp.carry(delivery(relay(remote.port)), CONTENT) for _ in range(100)]
        assert all(kinds(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*carrying))
        assert len(remote.sessions) == 6


async def test_slow_start_begins_small() -> None:
    go = asyncio.Event()
    async with Remote({"DOT": [Wait(go, "250 ok")]}) as remote, courier() as smtp:
        carrying = [asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT)) for _ in range(30)]
        await remote.until_said("DOT")
        await asyncio.sleep(0.1)
        assert len(remote.sessions) == 4
        go.set()
        await asyncio.gather(*carrying)
        assert len(remote.sessions) > 4


async def test_a_server_that_limits_connections_is_used_within_its_limit() -> None:
    async with Remote({"GREETING": ["220 a", "220 b", "421 4.7.0 too many"]}) as remote, courier() as smtp:
        carrying = [smtp.carry(delivery(relay(remote.port)), CONTENT) for _ in range(40)]
        assert all(kinds(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*carrying))


async def test_the_cap_on_all_connections_is_shared() -> None:
    async with Remote() as one, Remote() as two, Remote() as three, courier(connections=2) as smtp:
        remotes = [one, two, three] * 10
        carrying = [smtp.carry(delivery(relay(remote.port)), CONTENT) for remote in remotes]
        outcomes = await asyncio.wait_for(asyncio.gather(*carrying), 10)
        assert all(kinds(outcome) == ["Delivered"] for outcome in outcomes)
        assert max(remote.open_connections for remote in (one, two, three)) <= 2


async def test_a_busy_site_does_not_keep_its_connections_while_another_has_none() -> None:
    async with Remote() as busy, Remote() as other, courier(connections=2) as smtp:
        many = [asyncio.create_task(smtp.carry(delivery(relay(busy.port)), CONTENT)) for _ in range(300)]
        await busy.until(10)
        assert kinds(await smtp.carry(delivery(relay(other.port)), CONTENT)) == ["Delivered"]
        assert len(busy.messages) < 200
        assert all(kinds(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*many))


async def test_the_only_connection_there_may_be_goes_from_site_to_site() -> None:
    async with Remote() as one, Remote() as two, Remote() as three, courier(connections=1) as smtp:
        many = [
            asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT))
            for remote in (one, two)
            for _ in range(200)
        ]
        await one.until(10)
        assert kinds(await smtp.carry(delivery(relay(three.port)), CONTENT)) == ["Delivered"]
        assert len(one.messages) + len(two.messages) < 200
        assert all(kinds(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*many))


async def test_a_site_that_closes_behind_its_answer_is_not_pressed_less_for_it() -> None:
    terms = delivery(relay(1)).message.envelope
    hosts = Hosts(resolver=Names(), hostname="us.test", port=25, prefer_ipv6=True)
    pool = Pool(hosts=hosts, settings=DeliverySettings(), hostname="us.test")
    async with Remote() as remote:
        route = relay(remote.port)
        for _ in range(3):
            connection = await pool.acquire(route)
            assert isinstance(connection, Connection)
            carried = await connection.carry(terms, CONTENT)
            assert not carried.lost
            await remote.drop_connections()
            await until(lambda connection=connection: not connection.usable)  # type: ignore[misc]
            pool.release(route, connection)
        async with asyncio.timeout(5):
            together = await asyncio.gather(*(pool.acquire(route) for _ in range(6)))
        assert all(isinstance(connection, Connection) for connection in together)
        await pool.close()


async def test_the_next_exchanger_is_tried() -> None:
    """Equal ports on different loopback addresses stand for different hosts."""
    async with Remote({"GREETING": ["554 5.7.1 no"]}) as first, Remote(port=first.port, host="127.0.0.3") as third:
        names = Names(
            mx1=IpAddresses(("127.0.0.2",)), mx2=IpAddresses(("127.0.0.1",)), mx3=IpAddresses(("127.0.0.3",)),
            mx0=NoSuchDomain(), mxx=DnsUnknown("SERVFAIL"),
        )  # fmt: skip
        hosts = ((0, "mx0.test"), (1, "mxx.test"), (10, "mx1.test"), (20, "mx2.test"), (30, "mx3.test"))
        async with courier(names, port=first.port) as smtp:
            (outcome,) = await smtp.carry(delivery(ToMx("r.test", hosts)), CONTENT)
            assert isinstance(outcome, Delivered)
            assert outcome.remote == f"mx3.test[127.0.0.3]:{third.port}"
            assert len(first.sessions) == 1


async def test_no_exchanger_has_an_address() -> None:
    async with courier(Names(mx=NoSuchDomain())) as smtp:
        (outcome,) = await smtp.carry(delivery(ToMx("r.test", ((10, "mx.test"),))), CONTENT)
        assert isinstance(outcome, Failed)
        assert outcome.reply.enhanced == "5.4.4"
    async with courier(Names(mx=NoSuchDomain(), my=DnsUnknown("time-out"))) as smtp:
        (outcome,) = await smtp.carry(delivery(ToMx("r.test", ((10, "my.test"), (20, "mx.test")))), CONTENT)
        assert isinstance(outcome, Deferred)
        assert outcome.reply.enhanced == "4.4.3"


async def test_mail_does_not_loop_back_to_us() -> None:
    hosts = Hosts(resolver=Names(), hostname="us.test", port=25, prefer_ipv6=True)
    better = [
        item async for item in hosts.targets(ToMx("r.test", ((5, "10.0.0.1"), (10, "us.test"), (20, "10.0.0.2"))))
    ]
    assert better == [Target("10.0.0.1", "10.0.0.1", 25)]
    (only,) = [item async for item in hosts.targets(ToMx("r.test", ((10, "us.test"), (10, "10.0.0.2"))))]
    assert isinstance(only, NoTarget)
    assert only.reply.enhanced == "5.4.6"


@pytest.mark.parametrize("prefer_ipv6", [True, False])
async def test_order_of_targets(prefer_ipv6: bool) -> None:
    names = Names(mx=IpAddresses(("192.0.2.1", "2001:db8::1", "192.0.2.2")))
    hosts = Hosts(resolver=names, hostname="us.test", port=25, prefer_ipv6=prefer_ipv6)
    seen = set()
    for _ in range(50):
        route = ToMx("r.test", ((10, "mx.test"), (20, "203.0.113.1"), (20, "203.0.113.2")))
        targets = [item.ip async for item in hosts.targets(route) if isinstance(item, Target)]
        assert [":" in ip for ip in targets[:3]] == ([True, False, False] if prefer_ipv6 else [False, False, True])
        seen.add(tuple(targets))
    assert len(seen) == 4  # equals are shuffled


async def test_targets_are_bounded() -> None:
    names = Names(mx=IpAddresses(tuple(f"192.0.2.{number}" for number in range(100))))
    hosts = Hosts(resolver=names, hostname="us.test", port=25, prefer_ipv6=True)
    assert len([item async for item in hosts.targets(ToMx("r.test", ((10, "mx.test"),)))]) == 8


async def test_exchangers_without_an_address_are_not_asked_after_for_ever() -> None:
    class Counting(Names):
        asked = 0

        async def addresses(self, host: str) -> AddressAnswer:
            self.asked += 1
            return NoSuchDomain()

    names = Counting()
    async with courier(names) as smtp:
        hosts = tuple((10, f"mx{number}.test") for number in range(500))
        (outcome,) = await smtp.carry(delivery(ToMx("r.test", hosts)), CONTENT)
    assert names.asked == 20
    assert isinstance(outcome, Deferred)  # who was not asked after may have one
    assert outcome.reply.enhanced == "4.4.4"


async def test_cancelled_before_the_dot_it_gives_up_and_after_it_goes_on() -> None:
    go = asyncio.Event()
    async with Remote({"RCPT": [Stall(), "250 ok"], "DOT": [Wait(go, "250 ok")]}) as remote, courier() as smtp:
        before = asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT))
        await remote.until_said("RCPT")
        before.cancel()
        with pytest.raises(asyncio.CancelledError):
            await before

        after = asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT))
        await remote.until_said("DOT")
        after.cancel()
        await asyncio.sleep(0.05)
        assert not after.done()
        go.set()
        assert kinds(await after) == ["Delivered"]

        go.clear()
        for session in remote.sessions:
            session.commands.clear()
        given_up = asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT))
        await remote.until_said("DOT")
        for _ in range(2):
            given_up.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await given_up


async def test_an_answer_that_comes_in_the_instant_of_cancelling_counts() -> None:
    class Transport(asyncio.Transport):
        def write(self, data: object) -> None:
            pass

        def writelines(self, list_of_data: object) -> None:
            pass

        def is_closing(self) -> bool:
            return False

    connection = Connection(Dialogue("us.test", "mx.r.test"), Deadlines(), lambda _: None, asyncio.get_running_loop())
    connection.connection_made(Transport())
    connection.data_received(b"220 mx.r.test\r\n")
    connection.data_received(b"250-mx.r.test\r\n250 PIPELINING\r\n")
    one = delivery(relay(1))
    carrying = asyncio.create_task(connection.carry(one.message.envelope, CONTENT))
    await asyncio.sleep(0)
    connection.data_received(b"250 ok\r\n250 ok\r\n354 go on\r\n")
    connection.data_received(b"250 taken\r\n")
    carrying.cancel()  # the task has not run since
    assert kinds((await carrying).outcomes) == ["Delivered"]


async def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    async with Remote() as remote, courier(connections_per_site=1) as smtp:
        carrying = [asyncio.create_task(smtp.carry(delivery(relay(remote.port)), CONTENT)) for _ in range(40)]
        await remote.until(3)
        for task in carrying[5::2]:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*carrying, return_exceptions=True), 10)
        assert all(isinstance(result, asyncio.CancelledError) or kinds(result) == ["Delivered"] for result in results)  # type: ignore[arg-type]


async def test_close_does_not_wait_for_a_silent_server() -> None:
    async with Remote({"QUIT": [Stall()]}) as remote:
        smtp = SmtpCourier(settings=DeliverySettings(), hostname="us.test", resolver=Names())
        await smtp.carry(delivery(relay(remote.port)), CONTENT)
        await asyncio.wait_for(smtp.close(), 5)
        await remote.until_said("QUIT")


async def test_a_server_that_drips_its_answer_is_given_up() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"220-")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with listening(streams(drip)) as port, courier(deadlines=QUICK) as smtp:
        one = delivery(relay(port))
        (outcome,) = await asyncio.wait_for(smtp.carry(one, CONTENT), 5)
        assert isinstance(outcome, Deferred)
        assert "timed out" in outcome.reply.text


async def test_a_server_that_stops_reading_is_given_up() -> None:
    """The deadline of a block (RFC 5321 section 4.5.3.2.5)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250 hi\r\n")
        for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    over = asyncio.Event()
    content = b"x" * 76 + b"\r\n"
    content *= 300_000
    async with listening(streams(serve)) as port, courier(deadlines=QUICK) as smtp:
        (outcome,) = await asyncio.wait_for(smtp.carry(delivery(relay(port), content=content), content), 10)
        assert isinstance(outcome, Deferred)
        assert "timed out" in outcome.reply.text
        over.set()


async def test_an_ordinary_server_agrees() -> None:
    """The oracle: aiosmtpd's stock server."""
    got: list[tuple[str | None, list[str], bytes]] = []

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, terms: Any) -> str:  # noqa: N802
            got.append((terms.mail_from, terms.rcpt_tos, terms.content))
            return "250 2.0.0 ok"

    def make() -> asyncio.Protocol:
        return SMTP(Handler(), hostname="stock.test", enable_SMTPUTF8=True)

    content = "Subject: grüße\r\n\r\n..\r\n.a\r\n".encode()
    async with listening(make) as port, courier() as smtp:
        one = delivery(relay(port), "jürgen@r.test", "b@r.test", content=content)
        assert kinds(await smtp.carry(one, content)) == ["Delivered", "Delivered"]
    assert got == [("sender@example.test", ["jürgen@r.test", "b@r.test"], content)]
