"""A lost spool object: its message is deferred, `eilpost queue` and the log show the reason, and all other mail flows.

The message is delivered after the object is restored from a backup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.faults.accounting import AccountedMessage, Sink, Source
from tests.support.faults.cases import MailLoad, missing, settle, wait_for_empty_queue
from tests.support.servers.mail_cluster import HOSTS, MailCluster
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(180)]

LARGE_BYTES = 1_200_000  # stored as a separate file


async def test_lost_spool_object_defers_only_its_message(
    mail_cluster: MailCluster, round_number: Iterator[int]
) -> None:
    ingress = mail_cluster.members_of("ingress")[0]
    id_, to = f"object{next(round_number)}", f"one@[{HOSTS[2]}]"
    source = Source(ingress.mx, sessions=1)
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink:
        ingress.arm("after-append", least_bytes=1_000_000)
        sending = asyncio.create_task(source.send([AccountedMessage(id_, "bob@example.test", (to,), LARGE_BYTES)]))
        load = None
        try:
            await wait_until(lambda: ingress.is_frozen, what="the object in the spool")
            (file,) = (path for path in mail_cluster.spool.files() if path.stat().st_size > 1_000_000)
            backup = mail_cluster.folder / "backup"
            file.rename(backup)
            ingress.thaw()
            await asyncio.wait_for(sending, 30)
            queue_id = source.queue_ids[id_]
            load = MailLoad(mail_cluster, f"flows{next(round_number)}", 100, 40)
            await load.wait_until_done(60)
            await settle(load, sink, mail_cluster)
            assert not missing(load, sink, mail_cluster)

            def queue_text() -> str:
                return mail_cluster.members_of("router")[0].run("queue")

            await wait_until(
                lambda: asyncio.to_thread(lambda: "is missing" in queue_text()), what="the reason in the queue"
            )
            text = await asyncio.to_thread(queue_text)
            assert queue_id in text
            damaged = '"spooled content damaged, delivery deferred","queue_id":"' + queue_id
            assert any(damaged in member.output() for member in mail_cluster.members_of("delivery"))
            assert id_ not in sink.ids()
            backup.rename(file)
            await wait_until(lambda: id_ in sink.ids(), deadline_seconds=30, what="its delivery")
            assert await wait_for_empty_queue(mail_cluster) == []
            assert sink.taken[id_, to] == 1
        finally:
            ingress.disarm()
            ingress.thaw()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            if load is not None:
                load.stop()
                await load.close()
