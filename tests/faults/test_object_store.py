"""The spool of a cluster is a real object store, which freezes, and later is killed and started again: nothing is lost.

Meanwhile large mail gets 451 and small mail flows; what was accepted is delivered or bounced, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import kafka
from tests.support.accounting import Posting, Sink
from tests.support.cells import Load, check_copies, empty_queue, run_cell
from tests.support.mailcluster import HOSTS, INLINE_MAX, MailCluster
from tests.support.mishaps import Harm
from tests.support.objects import SECRET_KEY, ObjectServer

pytestmark = [
    pytest.mark.kafka_cluster,
    pytest.mark.objects,
    pytest.mark.fault,
    pytest.mark.timeout(300),
]

PER_SECOND = 40
CELLS = (
    # the fault, its instants, how many messages: they come for longer than it lasts
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
    """Nobody fetches mail here: the mailboxes are read from their files."""
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
        cluster.settle()
        yield cluster
    finally:
        cluster.stop()


async def test_it_freezes_and_is_killed(stored_cluster: MailCluster, store: ObjectServer, turn: Iterator[int]) -> None:
    async with Sink(port=stored_cluster.sink_port, hosts=HOSTS) as sink:

        def check(load: Load, harm: Harm) -> None:
            # A door that stood still may say 421 as it wakes; what is refused after its dot is large, all of it.
            during = [answer.reply for answer in load.answers if harm.began < answer.at < harm.ended]
            meanwhile = [reply for reply in during if not reply.startswith(b"421")]
            assert meanwhile, "nothing was answered 451"
            assert {reply[:9] for reply in meanwhile} == {b"451 4.3.0"}
            assert all(_is_large(posting) for posting in load.unknown.values())
            flowed = [
                id_
                for id_, posting in load.promised.items()
                if not _is_large(posting) and harm.began < load.sent_at[id_] < sink.first_at.get(id_, 0) < harm.ended
            ]
            print(f"{len(meanwhile)} answered 451 and {len(flowed)} small ones accepted and delivered meanwhile")
            assert len(flowed) > 0.5 * PER_SECOND * (harm.ended - harm.began) * 0.5
            assert any(_is_large(posting) for posting in load.promised.values())

        accounts = [
            await run_cell(
                stored_cluster, sink, fault, points, count=count, per_second=PER_SECOND, turn=next(turn), check=check
            )
            for fault, points, count in CELLS
        ]
        assert await empty_queue(stored_cluster) == []
        check_copies(accounts, sink)
    assert store.files()
    for name, output in stored_cluster.outputs().items():
        assert "traceback" not in output.lower(), name
        assert SECRET_KEY not in output, name


def _is_large(posting: Posting) -> bool:
    return posting.size_bytes > INLINE_MAX
