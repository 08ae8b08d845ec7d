"""What the sink takes becomes records: a report of a failure has to be about a destination that fails."""

from __future__ import annotations

import pytest

from eilpost.load.accounting import Accounting
from eilpost.load.ledger import Ledger
from eilpost.load.plan import Plan

REPORT = """\
Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r
\r
--b\r
Content-Type: message/delivery-status\r
\r
Reporting-MTA: dns; mx.example.test\r
\r
Final-Recipient: rfc822; {}\r
Action: failed\r
Status: 5.1.1\r
\r
--b--\r
"""


@pytest.mark.parametrize(("failing", "wrong"), [(1.0, 0), (0.0, 1)])
def test_only_a_failing_destination_may_be_reported(failing: float, wrong: int) -> None:
    plan = Plan("run1", failing=failing)
    accounting = Accounting(plan, Ledger("run1"))
    (message,) = accounting.messages(1)
    accounting.dot(message)
    accounting.message("", [], REPORT.format(message.recipients[0]).encode())
    counts = accounting.ledger.counts
    assert (counts.arrivals, counts.wrong_bounces) == (1, wrong)


def test_a_copy_for_a_recipient_outside_the_load_is_misdirected() -> None:
    plan = Plan("run1")
    accounting = Accounting(plan, Ledger("run1"))
    (message,) = accounting.messages(1)
    accounting.dot(message)
    accounting.message(message.sender, [*message.recipients, "someone@else.test"], message.head + message.body)
    counts = accounting.ledger.counts
    assert (counts.arrivals, counts.misdirected, counts.foreign) == (1, 1, 0)
