"""The matrix, short: each fault at each instant of a message's way, under load, and nothing is lost.

One wave hits several processes at the same time, each at its own instant, while the others of its role go on; two waves
make a fault's row. The long form, each cell alone, is `make faults`. Next: `docs/faults.md`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.accounting import Sink
from tests.support.cells import check_copies, empty_queue, run_cell
from tests.support.mailcluster import HOSTS, MailCluster
from tests.support.mishaps import MISHAPS

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(300)]

PER_SECOND = 60
COUNT = 240
WAVES = (
    ("before-dot", "after-append", "in-transaction", "in-data", "after-keep"),
    ("after-250", "after-commit", "after-remote-250", "after-report"),
)


@pytest.mark.parametrize("fault", list(MISHAPS))
async def test_matrix(fault: str, mail_cluster: MailCluster, turn: Iterator[int]) -> None:
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink:
        accounts = [
            await run_cell(mail_cluster, sink, fault, points, count=COUNT, per_second=PER_SECOND, turn=next(turn))
            for points in WAVES
        ]
        assert await empty_queue(mail_cluster) == []
        check_copies(accounts, sink)
    for name, output in mail_cluster.outputs().items():
        assert "traceback" not in output.lower(), name
