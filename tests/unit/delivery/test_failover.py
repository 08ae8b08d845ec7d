"""Tests of the walk over the exchangers of a route within one attempt (RFC 5321 section 5.1).

Exchangers are the same port on different loopback addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from delivery.courier import Progress
from delivery.smtp_courier import SmtpCourier
from delivery.walk import SESSIONS_MAX
from mail.outcome import Deferred, Delivered, Failed
from mail.resolver import AddressAnswer, IpAddresses
from mail.route import RelayProtocol, ToMx, ToRelay
from tests.support.builders.delivery import CONTENT, delivery
from tests.support.clients.couriers import SHORT_TIMEOUTS, HostResolver, courier, outcome_names
from tests.support.servers.scripted_remote import Drop, ScriptedRemote, Session, Stall, Wait

LATER = "452 4.3.1 disk full"
Script = Mapping[str, Sequence[Any]]


class World:
    """Exchangers mx1.test, mx2.test, ... by preference, and a courier."""

    def __init__(self, remotes: list[ScriptedRemote], smtp: SmtpCourier) -> None:
        self.remotes = remotes
        self.smtp = smtp
        self.route = ToMx("r.test", tuple((10 * n, f"mx{n}.test") for n in range(1, len(remotes) + 1)))
        self.progress = Progress()

    async def deliver(self, *recipients: str, content: bytes = CONTENT, attempt: int = 1) -> list[str]:
        self.progress = Progress(attempt=attempt)
        own_delivery = delivery(self.route, *recipients, content=content)
        self.outcomes = await asyncio.wait_for(self.smtp.deliver(own_delivery, content, self.progress), 10)
        return outcome_names(self.outcomes)

    @property
    def sessions(self) -> list[int]:
        return [len(remote.sessions) for remote in self.remotes]

    @property
    def asked(self) -> list[str]:
        return [f"{one.remote.partition('.')[0]} {one.reply.code}" for one in self.progress.asked]


@asynccontextmanager
async def exchangers(*scripts: Script, **settings: Any) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        remotes: list[ScriptedRemote] = []
        names = HostResolver()
        for number, script in enumerate(scripts, 1):
            port = remotes[0].port if remotes else 0
            remote = ScriptedRemote(script, host=f"127.0.0.{number}", port=port)
            remotes.append(await stack.enter_async_context(remote))
            names.hosts[f"mx{number}"] = IpAddresses((f"127.0.0.{number}",))
        settings = {"timeouts": SHORT_TIMEOUTS, "mx_port": remotes[0].port, **settings}
        yield World(remotes, await stack.enter_async_context(courier(names, **settings)))


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("answer", [LATER, "421 4.3.2 closing"])
async def test_refusal_for_now_goes_to_the_next_exchanger(verb: str, answer: str) -> None:
    async with exchangers({verb: [answer]}, {}) as world:
        assert await world.deliver("a@r.test", "b@r.test") == ["Delivered"] * 2
        assert world.sessions == [1, 1]
        assert world.asked == [f"mx1 {answer[:3]}", "mx2 250"]


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("trouble", [Drop(), Drop(reset=True), Stall()])
async def test_connection_lost_before_the_final_dot_goes_to_the_next_exchanger(verb: str, trouble: Any) -> None:
    async with exchangers({verb: [trouble]}, {}) as world:
        assert await world.deliver() == ["Delivered"]
        assert world.sessions == [1, 1]
        assert world.asked == ["mx1 451", "mx2 250"]


@pytest.mark.parametrize("trouble", [Drop(), Drop(reset=True), Stall()])
async def test_connection_lost_after_the_final_dot_is_not_repeated(trouble: Any) -> None:
    """RFC 1047: the first exchanger may have accepted the message."""
    async with exchangers({"DOT": [trouble]}, {}) as world:
        assert await world.deliver() == ["Deferred"]
        assert world.sessions == [1, 0]
        assert "get it twice" in world.outcomes[0].reply.text


async def test_only_open_recipients_go_to_the_next_exchanger() -> None:
    first = {"RCPT": ["250 ok", "450 4.2.1 greylisted", "550 5.1.1 no", "250 ok"]}
    async with exchangers(first, {"RCPT": ["550 5.1.1 unknown"]}) as world:
        assert await world.deliver("a@r.test", "b@r.test", "c@r.test", "d@r.test") == [
            "Delivered", "Failed", "Failed", "Delivered"
        ]  # fmt: skip
        assert world.remotes[1].commands[2:3] == ["RCPT TO:<b@r.test>"]
        assert str(world.outcomes[1].reply) == "550 5.1.1 unknown"
        assert world.asked == ["mx1 450", "mx2 550"]


async def test_open_recipient_beside_a_lost_final_reply_goes_to_the_next_exchanger() -> None:
    async with exchangers({"RCPT": ["250 ok", "450 4.2.1 later"], "DOT": [Drop()]}, {}) as world:
        assert await world.deliver("a@r.test", "b@r.test") == ["Deferred", "Delivered"]
        assert world.remotes[1].messages[0].rcpts == ["TO:<b@r.test>"]


async def test_permanent_refusal_ends_the_walk() -> None:
    async with exchangers({"MAIL": ["550 5.7.1 never"]}, {}) as world:
        assert await world.deliver() == ["Failed"]
        assert world.sessions == [1, 0]
        assert world.asked == []  # the outcome says it


async def test_further_transactions_stay_with_the_exchanger() -> None:
    first = {"RCPT": ["250 ok", "452 4.5.3 too many", "450 4.2.1 later", "250 ok"]}
    async with exchangers(first, {}) as world:
        assert await world.deliver("a@r.test", "b@r.test", "c@r.test") == ["Delivered"] * 3
        assert [message.rcpts for message in world.remotes[0].messages] == [["TO:<a@r.test>"], ["TO:<b@r.test>"]]
        assert [message.rcpts for message in world.remotes[1].messages] == [["TO:<c@r.test>"]]


async def test_all_exchangers_refuse() -> None:
    async with exchangers({"MAIL": [LATER]}, {"DOT": ["451 4.7.1 greylisted"]}) as world:
        for _ in range(2):
            assert await world.deliver() == ["Deferred"]
            assert str(world.outcomes[0].reply) == "451 4.7.1 greylisted"
            assert isinstance(world.outcomes[0], Deferred)
            assert (world.outcomes[0].remote or "").startswith("mx2.test[127.0.0.2]")


async def test_reply_of_an_exchanger_is_kept_if_the_next_one_cannot_be_reached() -> None:
    async with exchangers({"MAIL": [LATER]}, {"GREETING": ["421 4.7.0 busy"]}) as world:
        assert await world.deliver() == ["Deferred"]
        assert str(world.outcomes[0].reply) == LATER
        assert world.asked == ["mx1 452", "mx2 421"]


async def test_sessions_of_an_attempt_are_bounded() -> None:
    async with exchangers(*[{"MAIL": [LATER]}] * (SESSIONS_MAX + 2)) as world:
        assert await world.deliver() == ["Deferred"]
        assert world.sessions == [1] * SESSIONS_MAX + [0, 0]


async def test_host_with_many_unreachable_addresses_does_not_use_up_the_attempt() -> None:
    async with exchangers({}) as world:
        unreachable = tuple(f"127.0.1.{number}" for number in range(1, 10))
        names = HostResolver(
            mx0=IpAddresses(unreachable), mx1=IpAddresses(("127.0.0.1",)), mx2=IpAddresses(unreachable)
        )
        route = ToMx("r.test", ((0, "mx0.test"), (5, "mx2.test"), (10, "mx1.test")))
        async with courier(names, mx_port=world.remotes[0].port) as smtp:
            progress = Progress()
            (outcome,) = await smtp.deliver(delivery(route), CONTENT, progress)
            assert isinstance(outcome, Delivered)
            assert [one.remote[:8] for one in progress.asked] == ["mx0.test"] * 4 + ["mx2.test"] * 4 + ["mx1.test"]


@pytest.mark.parametrize("protocol", list(RelayProtocol))
async def test_relay_with_several_addresses(protocol: RelayProtocol) -> None:
    lmtp = protocol is RelayProtocol.LMTP
    async with (
        ScriptedRemote({"MAIL": [LATER]}, lmtp=lmtp) as first,
        ScriptedRemote({"MAIL": [LATER, "250 ok"]}, lmtp=lmtp, host="127.0.0.2", port=first.port) as second,
        ScriptedRemote({"MAIL": [LATER]}, lmtp=lmtp, host="127.0.0.3", port=first.port) as third,
    ):
        names = HostResolver(relay=IpAddresses(("127.0.0.1", "127.0.0.2", "127.0.0.3")))
        async with courier(names) as smtp:
            await smtp.deliver(delivery(ToRelay("relay.test", first.port, protocol)), CONTENT)
        assert sorted(len(remote.sessions) for remote in (first, second, third)) == [0, 1, 1]  # as in Postfix


async def test_same_address_is_not_asked_twice_in_an_attempt() -> None:
    """Also when the attempt reused a connection."""
    async with exchangers({"RCPT": ["250 ok", "450 4.2.1 later"]}) as world:
        assert [await world.deliver() for _ in range(3)] == [["Delivered"], ["Deferred"], ["Deferred"]]
        assert sum(command.startswith("RCPT") for command in world.remotes[0].commands) == 3


async def test_lmtp_recipient_refused_at_the_final_dot_goes_to_the_next_address() -> None:
    script = {"DOT": ["250 ok", "452 4.2.2 full"]}
    async with (
        ScriptedRemote(script, lmtp=True) as first,
        ScriptedRemote(script, lmtp=True, host="127.0.0.2", port=first.port) as second,
    ):
        names = HostResolver(relay=IpAddresses(("127.0.0.1", "127.0.0.2")))
        async with courier(names) as smtp:
            own_delivery = delivery(ToRelay("relay.test", first.port, RelayProtocol.LMTP), "a@r.test", "b@r.test")
            assert outcome_names(await smtp.deliver(own_delivery, CONTENT)) == ["Delivered"] * 2
        assert sorted(message.rcpts for remote in (first, second) for message in remote.messages) == [
            ["TO:<a@r.test>"], ["TO:<b@r.test>"]
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("MAIL", LATER),
        ("DATA", LATER),
        ("MAIL", "421 4.7.0 not you"),
        ("RCPT", "421 4.2.1 x"),
        ("DOT", "421 4.2.1 x"),
        ("MAIL", Drop()),
    ],
)
async def test_exchanger_that_refuses_what_another_accepts_is_tried_last_for_a_while(verb: str, reply: Any) -> None:
    consequences = {"RCPT": ["503 5.5.1 no MAIL"], "DATA": ["503 5.5.1 no MAIL"]} if verb == "MAIL" else {}
    async with exchangers({verb: [reply], **consequences}, {"MAIL": ["250 ok", "250 ok", LATER]}) as world:
        assert await world.deliver() == ["Delivered"]
        assert await world.deliver() == ["Delivered"]
        assert world.sessions == [1, 1]  # the second message reused the connection to mx2
        assert await world.deliver() == ["Deferred"]
        assert "Not tried" in world.progress.asked[-1].reply.text


async def test_one_delivery_finds_out_whether_a_silent_exchanger_is_back() -> None:
    back_off = timedelta(seconds=0.3)
    async with exchangers({"GREETING": [Stall()]}, {}, reconnect_backoff=back_off) as world:
        assert await world.deliver() == ["Delivered"]
        await asyncio.sleep(0.3)
        attempts = [world.smtp.deliver(delivery(world.route), CONTENT) for _ in range(10)]
        outcomes = await asyncio.wait_for(asyncio.gather(*attempts), 10)
        assert [outcome_names(outcome) for outcome in outcomes] == [["Delivered"]] * 10
        assert world.sessions[0] == 2


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("RCPT", "450 4.2.1 later"),
        ("RCPT", "452 4.3.1 disk full"),
        ("MAIL", "450 4.7.1 greylisted"),
        ("MAIL", "451 4.2.2 full"),
        ("MAIL", "451 later"),
        ("DATA", "451 4.7.1 greylisted"),
        ("DOT", "451 4.7.1 greylisted"),
        ("DOT", "452 4.3.1 disk full"),
    ],
)
async def test_reply_about_one_message_does_not_back_the_exchanger_off(verb: str, reply: str) -> None:
    """Greylisting and full mailboxes are about a recipient or a message, and so is a refusal of the content."""
    script = {verb: [reply, "354 go" if verb == "DATA" else "250 ok"]}
    if verb == "MAIL":
        script |= {"RCPT": ["503 5.5.1 no MAIL", "250 ok"], "DATA": ["503 5.5.1 no MAIL", "354 go"]}
    async with exchangers(script, {}) as world:
        assert await world.deliver() == ["Delivered"]
        await world.remotes[1].drop_connections()
        assert await world.deliver() == ["Delivered"]
        assert [len(remote.messages) for remote in world.remotes] == [1, 1]


async def test_unreachable_exchanger_is_tried_last_by_all_its_sites() -> None:
    async with exchangers({}, {}) as world:
        await world.remotes[0].stop()
        assert await world.deliver() == ["Delivered"]
        await world.remotes[0].start()
        world.route = ToMx("other.test", ((1, "mx1.test"), (2, "mx2.test"), (3, "mx3.test")))
        assert await world.deliver() == ["Delivered"]
        assert world.sessions == [0, 2]


async def test_lmtp_421_after_the_dot_gives_no_recipient_a_second_copy() -> None:
    first = {"DOT": ["421 4.3.2 a", "250 2.0.0 b"]}
    async with (
        ScriptedRemote(first, lmtp=True) as one,
        ScriptedRemote(first, lmtp=True, host="127.0.0.2", port=one.port) as two,
    ):
        names = HostResolver(relay=IpAddresses(("127.0.0.1", "127.0.0.2")))
        async with courier(names) as smtp:
            own_delivery = delivery(ToRelay("relay.test", one.port, RelayProtocol.LMTP), "a@r.test", "b@r.test")
            (first_outcome, second_outcome) = await smtp.deliver(own_delivery, CONTENT)
        assert isinstance(first_outcome, Deferred)
        assert isinstance(second_outcome, Delivered)
        messages = [message.rcpts for remote in (one, two) for message in remote.messages]
        assert messages == [["TO:<b@r.test>"]]


async def test_exchanger_that_breaks_every_transaction_does_not_back_the_site_off() -> None:
    async with exchangers({"MAIL": [Drop()]}, {}) as world:
        attempts = [world.smtp.deliver(delivery(world.route), CONTENT) for _ in range(50)]
        outcomes = await asyncio.wait_for(asyncio.gather(*attempts), 10)
        assert [outcome_names(outcome) for outcome in outcomes] == [["Delivered"]] * 50
        assert world.sessions[0] <= 4


async def test_cancellation_at_the_second_exchanger_reports_what_the_first_one_said() -> None:
    never = asyncio.Event()
    first = {"RCPT": ["250 ok", "450 4.2.1 later"]}
    async with exchangers(first, {"RCPT": [Wait(never, "250 ok")]}, timeouts=None) as world:
        own_delivery = delivery(world.route, "a@r.test", "b@r.test")
        task = asyncio.create_task(world.smtp.deliver(own_delivery, CONTENT))
        await world.remotes[1].wait_command("RCPT")
        task.cancel()
        outcomes = await task
        assert outcome_names(outcomes) == ["Delivered", "Deferred"]
        assert str(outcomes[1].reply) == "450 4.2.1 later"


async def test_cancellation_while_the_next_exchanger_is_looked_up_reports_the_first_transaction() -> None:
    class Slow(HostResolver):
        calls = 0
        waiting = asyncio.Event()

        async def addresses(self, host: str) -> AddressAnswer:
            self.calls += 1
            if self.calls > 1:
                self.waiting.set()
                await asyncio.Event().wait()
            return IpAddresses(("127.0.0.1",))

    names = Slow()
    async with ScriptedRemote({"RCPT": ["250 ok", "450 4.2.1 later"]}) as remote, courier(names) as smtp:
        own_delivery = delivery(ToRelay("relay.test", remote.port), "a@r.test", "b@r.test")
        task = asyncio.create_task(smtp.deliver(own_delivery, CONTENT))
        await names.waiting.wait()
        task.cancel()
        assert outcome_names(await task) == ["Delivered", "Deferred"]


async def test_message_too_large_for_the_first_exchanger_fails() -> None:
    """A 5xx of ours about the announced limit is final, as in Postfix."""
    async with exchangers({"EHLO": ["250-mx1\n250 SIZE 10"]}, {}) as world:
        assert await world.deliver() == ["Failed"]
        assert isinstance(world.outcomes[0], Failed)


class Swallowing(ScriptedRemote):
    """Offers PIPELINING and reads only the first command of a packet."""

    async def _run_session(
        self, number: int, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner = asyncio.StreamReader()

        async def copy() -> None:
            content = False
            while packet := await reader.read(65536):
                first = packet if content else packet[: packet.find(b"\n") + 1]
                content = (content or first == b"DATA\r\n") and not packet.endswith(b"\r\n.\r\n")
                inner.feed_data(first)
            inner.feed_eof()

        async with asyncio.TaskGroup() as group:
            copying = group.create_task(copy())
            try:
                await super()._run_session(number, session, inner, writer)
            finally:
                copying.cancel()


async def test_server_that_swallows_pipelined_commands_is_asked_without_pipelining() -> None:
    async with Swallowing() as remote, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        progress = Progress()
        route = ToRelay("127.0.0.1", remote.port)
        assert (
            outcome_names(await smtp.deliver(delivery(route, "a@r.test", "b@r.test"), CONTENT, progress))
            == ["Delivered"] * 2
        )
        replies = [str(one.reply) for one in progress.asked]
        assert "(waiting for the reply to RCPT) after pipelined commands" in replies[0]
        assert replies[1:] == ["250 2.0.0 accepted"]
        assert len(remote.sessions) == 2
        await remote.drop_connections()
        assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Delivered"]
        assert len(remote.sessions) == 3  # it is remembered


async def test_server_that_stalls_without_pipelining_too_is_asked_once_more_only_once() -> None:
    async with ScriptedRemote({"MAIL": [Stall()]}) as remote, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        route = ToRelay("127.0.0.1", remote.port)
        for sessions in (2, 3, 4):
            assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Deferred"]
            if sessions < 4:  # then it is backed off
                assert len(remote.sessions) == sessions


async def test_another_exchanger_is_asked_before_one_that_stalled() -> None:
    async with exchangers({"MAIL": [Stall()]}, {}) as world:
        assert await world.deliver() == ["Delivered"]
        assert world.sessions == [1, 1]


@pytest.mark.parametrize(
    ("codes", "attempt", "kind"),
    [
        ((521, 521), 1, "Failed"),
        ((554, 554), 1, "Deferred"),  # often a block list, or a server that is short of connections
        ((554, 554), 2, "Deferred"),
        ((554, 554), 3, "Failed"),
        ((554, 521), 1, "Deferred"),
        ((521, 554), 3, "Failed"),
    ],
)
async def test_all_exchangers_that_accept_no_mail_fail_the_recipients(
    codes: tuple[int, int], attempt: int, kind: str
) -> None:
    """RFC 7504: 521 at once; 554 in the third attempt."""
    async with exchangers(*({"GREETING": [f"{code} no mail here"]} for code in codes)) as world:
        assert await world.deliver(attempt=attempt) == [kind]
        assert world.sessions == [1, 1]
        assert f"sent the greeting {codes[1]} no mail here" in world.outcomes[0].reply.text
        if kind == "Failed":
            assert (world.outcomes[0].reply.code, world.outcomes[0].reply.enhanced) == (codes[1], "5.3.2")


@pytest.mark.parametrize("protocol", list(RelayProtocol))
@pytest.mark.parametrize("code", [521, 554])
async def test_greeting_of_a_relay_never_fails_the_recipients(code: int, protocol: RelayProtocol) -> None:
    """The operator can correct the relay or the setting; otherwise it would be all mail."""
    script = {"GREETING": [f"{code} no mail here"]}
    async with ScriptedRemote(script, lmtp=protocol is RelayProtocol.LMTP) as remote, courier() as smtp:
        own_delivery = delivery(ToRelay("127.0.0.1", remote.port, protocol))
        (outcome,) = await smtp.deliver(own_delivery, CONTENT, Progress(attempt=9))
        assert isinstance(outcome, Deferred)
        assert f"sent the greeting {code} no mail here" in outcome.reply.text


@pytest.mark.parametrize("other", ["421 4.3.2 busy", "550 5.7.1 blocked"])
async def test_one_exchanger_that_may_accept_mail_later_defers(other: str) -> None:
    async with exchangers({"GREETING": ["521 no mail here"]}, {"GREETING": [other]}) as world:
        assert await world.deliver() == ["Deferred"]


async def test_greeting_of_a_site_that_worked_lately_defers() -> None:
    """It refuses this client for now, or is short of connections."""
    async with exchangers({"GREETING": ["220 hello", "554 5.7.1 too many connections"]}) as world:
        assert await world.deliver() == ["Delivered"]
        await world.remotes[0].drop_connections()
        assert await world.deliver(attempt=3) == ["Deferred"]
