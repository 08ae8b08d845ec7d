"""05: the next hop says "later": the message waits in the queue, without its body, and is delivered on a later try."""

from __future__ import annotations

from mail.message import Spooled
from mail.outcome import Deferred, Delivered
from mail.record import Resumed, Tried, Waiting, Why
from tests.support.ports import wait_until
from tests.support.remote import Remote
from tests.support.world import World

LETTER = b"Subject: patience\r\n\r\nhello\r\n" + b"a line that must not be in the queue twice\r\n" * 50
QUICK = {"retry": ["300ms"]}


async def test_deferred_then_delivered() -> None:
    async with (
        Remote({"RCPT": ["451 4.7.1 greylisted", "451 4.7.1 still", "250 ok"]}) as remote,
        World({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": QUICK}) as world,
    ):
        queue_id = await world.send(LETTER, to=["friend@elsewhere.test"])
        story = await world.closed(queue_id)
        tried = [what for what in story if isinstance(what, Tried)]
        assert [attempt.number for attempt in tried] == [1, 2, 3]
        assert [type(attempt.outcomes[0]) for attempt in tried] == [Deferred, Deferred, Delivered]
        assert tried[0].outcomes[0].reply.text == "greylisted"
        assert tried[0].next_due is not None
        assert tried[2].next_due is None
        assert [what.number for what in story if isinstance(what, Resumed)] == [2, 3]
        (message,) = remote.messages
        assert message.content.endswith(LETTER)


async def test_while_it_waits_the_queue_says_why() -> None:
    async with (
        Remote({"MAIL": ["450 4.3.2 shutting down"]}) as remote,
        World({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": {"retry": ["1h"]}}) as world,
    ):
        queue_id = await world.send(LETTER, to=["friend@elsewhere.test"])

        async def waits() -> bool:
            return any(isinstance(line.state, Waiting) for line in await world.queue())

        await wait_until(waits, what="the deferral")
        (line,) = await world.queue()
        assert line.delivery.message.queue_id == queue_id
        assert isinstance(line.state, Waiting)
        assert line.state.why is Why.RETRY
        assert "450 4.3.2 shutting down" in line.state.reason
        assert line.attempts == 1
        assert line.last is not None
        assert line.last.code == 450
        assert isinstance(line.content, Spooled)  # a queue line never carries a body
        assert (await world.spool.read(line.content)).endswith(LETTER)


async def test_nobody_listens_there() -> None:
    async with Remote() as gone:
        port = gone.port
    async with World(
        {"delivery": {"relay": f"smtp://127.0.0.1:{port}", "dead_site": "200ms"}, "router": QUICK}
    ) as world:
        queue_id = await world.send(LETTER, to=["friend@elsewhere.test"])

        async def tried() -> bool:
            return bool(await world.happened(queue_id, Tried))

        await wait_until(tried, what="an attempt")
        (outcome,) = (await world.happened(queue_id, Tried))[0].outcomes
        assert isinstance(outcome, Deferred)  # unknown means temporary
        async with Remote(port=port) as remote:
            await world.closed(queue_id)
            assert len(remote.messages) == 1
