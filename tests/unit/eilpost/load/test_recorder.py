"""Arrivals at the sink are recorded; a bounce must be about a failing destination."""

from __future__ import annotations

import pytest

from eilpost.load.ledger import Ledger
from eilpost.load.recorder import LoadRecorder
from eilpost.load.workload import Workload

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
def test_bounce_of_an_accepting_destination_is_wrong(failing: float, wrong: int) -> None:
    workload = Workload("run1", failing=failing)
    recorder = LoadRecorder(workload, Ledger("run1"))
    (message,) = recorder.messages(1)
    recorder.dot(message)
    recorder.message("", [], REPORT.format(message.recipients[0]).encode())
    counts = recorder.ledger.counts
    assert (counts.arrivals, counts.wrong_bounces) == (1, wrong)


def test_copy_for_a_foreign_recipient_is_misdirected() -> None:
    workload = Workload("run1")
    recorder = LoadRecorder(workload, Ledger("run1"))
    (message,) = recorder.messages(1)
    recorder.dot(message)
    recorder.message(message.sender, [*message.recipients, "someone@else.test"], message.head + message.body)
    counts = recorder.ledger.counts
    assert (counts.arrivals, counts.misdirected, counts.foreign) == (1, 1, 0)
