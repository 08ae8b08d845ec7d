"""The short form of the fault matrix: each fault at each fault point under load, and no message is lost.

A fault's row is two waves, each of which hits several processes at once, each at its own point; `make faults` runs each
case alone. The first wave hits both ingresses, both deliveries and a router, the second one ingress, both deliveries
and the other router. In the first wave a broker is killed and the network is cut for 3 s, in the second a broker is
stopped and the network is cut for longer than a session and then reset.
"""

from __future__ import annotations

import pytest

from tests.support.faults.accounting import Sink
from tests.support.faults.cases import check_copies, run_case, wait_for_empty_queue
from tests.support.faults.faults import FAULTS
from tests.support.servers.mail_cluster import HOSTS, MailCluster

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(300)]

PER_SECOND = 60
COUNT = 240
WAVES = (
    ("before-dot", "after-append", "in-transaction", "in-data", "after-mailbox-append"),
    ("after-250", "after-commit", "after-remote-250", "after-report"),
)


@pytest.mark.parametrize("fault", list(FAULTS))
async def test_no_fault_at_any_point_loses_mail(fault: str, mail_cluster: MailCluster) -> None:
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink:
        accounts = [
            await run_case(
                mail_cluster, sink, fault, points, count=COUNT, per_second=PER_SECOND, round_number=round_number
            )
            for round_number, points in enumerate(WAVES)
        ]
        assert await wait_for_empty_queue(mail_cluster) == []
        check_copies(accounts, sink)
    for name, output in mail_cluster.outputs().items():
        assert "traceback" not in output.lower(), name
