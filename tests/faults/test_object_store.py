"""A cluster whose spool is a real object store that hangs, is killed and is restarted: no message is lost.

While the store is away, large mail gets 451 and small mail flows; accepted mail is delivered byte for byte or bounced.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.accounting import AccountedMessage, Sink
from tests.support.faults.cases import MailLoad, check_copies, run_case, wait_for_empty_queue
from tests.support.faults.faults import FaultRecord
from tests.support.servers import kafka
from tests.support.servers.mail_cluster import HOSTS, INLINE_MAX, MailCluster
from tests.support.servers.object_store import SECRET_KEY, ObjectServer

pytestmark = [
    pytest.mark.kafka_cluster,
    pytest.mark.objects,
    pytest.mark.fault,
    pytest.mark.timeout(300),
]

PER_SECOND = 40
CELLS = (
    # fault, fault points, number of messages: sending takes longer than the fault
    ("store-frozen", ("after-append", "in-transaction", "in-data"), 1000),
    ("store-killed", ("before-dot", "after-commit", "after-remote-250"), 500),
)


@pytest.fixture
def store() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture
def stored_cluster(
    three_brokers: kafka.Cluster, store: ObjectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MailCluster]:
    """Nothing fetches mail here: the mailboxes are read from their files."""
    cluster = MailCluster(
        three_brokers,
        tmp_path_factory.mktemp("stored"),
        counts={"ingress": 2, "router": 2, "delivery": 2},
        settings={"log": {"append_timeout": "20s"}},
        store=store,
    )
    cluster.make_topics()
    try:
        cluster.start()
        cluster.wait_for_owners()
        yield cluster
    finally:
        cluster.stop()


async def test_object_store_outage_loses_nothing(
    stored_cluster: MailCluster, store: ObjectServer, round_number: Iterator[int]
) -> None:
    async with Sink(port=stored_cluster.sink_port, hosts=HOSTS) as sink:

        def check(load: MailLoad, fault_record: FaultRecord) -> None:
            # A stopped ingress may reply 421 when it resumes; only large messages are refused after the dot.
            during = [answer.reply for answer in load.answers if fault_record.began < answer.at < fault_record.ended]
            meanwhile = [reply for reply in during if not reply.startswith(b"421")]
            assert meanwhile, "nothing was answered 451"
            assert {reply[:9] for reply in meanwhile} == {b"451 4.3.0"}
            assert all(_is_large(posting) for posting in load.unknown.values())
            flowed = [
                id_
                for id_, posting in load.promised.items()
                if not _is_large(posting)
                and fault_record.began < load.sent_at[id_] < sink.first_at.get(id_, 0) < fault_record.ended
            ]
            print(f"{len(meanwhile)} answered 451 and {len(flowed)} small ones accepted and delivered meanwhile")
            assert len(flowed) > 0.5 * PER_SECOND * (fault_record.ended - fault_record.began) * 0.5
            assert any(_is_large(posting) for posting in load.promised.values())

        accounts = [
            await run_case(
                stored_cluster,
                sink,
                fault,
                points,
                count=count,
                per_second=PER_SECOND,
                round_number=next(round_number),
                check=check,
            )
            for fault, points, count in CELLS
        ]
        assert await wait_for_empty_queue(stored_cluster) == []
        check_copies(accounts, sink)
    assert store.files()
    for name, output in stored_cluster.outputs().items():
        assert "traceback" not in output.lower(), name
        assert SECRET_KEY not in output, name


def _is_large(posting: AccountedMessage) -> bool:
    return posting.size_bytes > INLINE_MAX
