"""Report, hints and exit status of a load; progress display."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from eilpost.load.ledger import Ledger
from eilpost.load.progress import RateMeter, one_line, panel
from eilpost.load.report import LoadResult, LoadSummary, as_json, hint, lines
from eilpost.load.workload import Workload

ENDED = LoadSummary(
    targets=("127.0.0.1:2525",),
    sink="127.0.0.1:2626",
    sessions=20,
    rate=50,
    sending_seconds=10.0,
    seconds=12.0,
    connections=20,
    unsent=0,
    interrupted=False,
)


def result(messages: int = 30, delivered: int = 30, summary: LoadSummary = ENDED) -> LoadResult:
    ledger = Ledger("run1")
    for number in range(messages):
        ledger.dot(ledger.issue(), 1.0 + number)
        ledger.accept_message(number, [number], 1000, [b"queued as Q%d" % number], 1.5 + number)
    for number in range(delivered):
        ledger.arrive(number, [number], True, 2.0 + number)
    return LoadResult(Workload("run1"), ledger, summary)


def text(result: LoadResult) -> str:
    return "\n".join("".join(part for part, _ in line) for line in lines(result))


def test_report_of_a_successful_load() -> None:
    assert result().status == 0
    assert hint(result()) == ""
    report = as_json(result())
    assert json.loads(json.dumps(report)) == report
    assert (report["accepted"], report["delivered"], report["lost"], report["open"]) == (30, 30, 0, [])
    assert report["accept_seconds"]["max"] == pytest.approx(0.5, rel=0.02)
    assert report["end_to_end_seconds"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert report["accepted_per_second"] == pytest.approx(30 / 29, abs=0.1)


def test_first_twenty_lost_recipients_are_listed_with_queue_ids() -> None:
    lossy = result(30, 5)
    assert lossy.status == 1
    assert [lost["id"] for lost in as_json(lossy)["open"]] == [f"run1-{number}" for number in range(5, 25)]
    assert "lost run1-5 to r5.run1@d6.load.test, eilpost trace Q5" in text(lossy)
    assert "and 5 more" in text(lossy)


def test_open_recipients_of_an_interrupted_load_are_unfinished() -> None:
    interrupted = result(30, 5, replace(ENDED, interrupted=True))
    assert interrupted.status == 130
    assert (as_json(interrupted)["lost"], as_json(interrupted)["unfinished"]) == (0, 25)
    assert "lost run1" not in text(interrupted)
    assert "unfinished run1-5" in text(interrupted)


def test_hint_when_nothing_was_accepted_or_arrived() -> None:
    assert result(0, 0).status == 1
    assert "accepted nothing" in hint(result(0, 0))
    assert "delivery.relay" in hint(result(3, 0))


def test_hint_names_delivery_relay_when_all_mail_bounced() -> None:
    bounced = result(3, 0)
    bounced.ledger.bounce([0, 1, 2], 9.0)
    assert hint(bounced) == ""  # destinations that refuse
    bounced.ledger.counts.wrong_bounces = 3
    assert hint(bounced).startswith("every message bounced: the server must relay to the sink: set delivery.relay")


def test_hint_names_settle_when_deferred_mail_was_not_retried() -> None:
    deferred = result(10, 9)
    deferred.ledger.first_attempt(9)
    assert "router.retry_delays" in hint(deferred)
    assert "deferred by the sink, no retry" in text(deferred)


def test_unsent_or_refused_mail_fails_the_load() -> None:
    unsent = result(summary=replace(ENDED, unsent=7))
    assert unsent.status == 1
    assert "unsent                  7  no target accepted them" in text(unsent)
    assert "no target accepted 7 messages" in hint(unsent)
    assert result(summary=replace(ENDED, unsent=7, interrupted=True)).status == 130
    refused = result()
    refused.ledger.refuse([refused.ledger.issue()], "RCPT: 550 5.7.1 no")
    assert refused.status == 1
    assert "refused 1 recipients" in hint(refused)


def test_hint_when_the_sender_domain_is_not_in_dns() -> None:
    refused = result(0, 0)
    refused.ledger.refuse([refused.ledger.issue()], "RCPT: 550 5.1.8 load.test: sender's domain does not exist")
    assert "ingress.sender_check_exempts_relay_networks" in hint(refused)
    assert "ingress.relay_networks; docs/load.md" in hint(refused)


def test_delivered_count_and_rate_exclude_bounces() -> None:
    bounced = result(30, 20)
    meter = RateMeter(bounced.ledger, 50.0)
    bounced.ledger.bounce(list(range(20, 30)), 52.0)  # the first message arrived at 2 s
    assert as_json(bounced)["bounced"] == 10
    assert as_json(bounced)["delivered_per_second"] == pytest.approx(20 / 50, abs=0.05)
    assert "delivered              20  0.4/s\n" in text(bounced)
    moment = meter.snapshot("settling", 1.0, 55.0)
    assert (moment.counts.bounced, moment.delivered_rate) == (10, 0)


@pytest.mark.parametrize("counter", ["damaged", "misdirected", "unexpected", "wrong_bounces"])
def test_incorrect_arrival_fails_the_load(counter: str) -> None:
    wrong = result()
    setattr(wrong.ledger.counts, counter, 1)
    assert wrong.status == 1
    assert counter.replace("_", " ") in text(wrong)


def test_display_shows_rates_of_the_last_seconds() -> None:
    ledger = Ledger("run1")
    meter = RateMeter(ledger, 100.0)

    def send(count: int, now: float, seconds: float) -> None:
        for _ in range(count):
            number = ledger.issue()
            ledger.dot(number, now - seconds)
            ledger.accept_message(number, [number], 1000, [], now)

    send(100, 101.0, 0.01)
    first = meter.snapshot("sending", 0.1, 101.0)
    assert (first.counts.accepted, round(first.accepted_rate), first.in_flight) == (100, 100, 100)
    assert first.oldest_seconds == pytest.approx(0.01)
    for second in range(2, 10):
        send(10, 100.0 + second, 1.0)
        moment = meter.snapshot("sending", 0.1, 100.0 + second)
    assert round(moment.accepted_rate) == 10  # the first second is over
    assert moment.accept_p50 == pytest.approx(1.0, rel=0.03)
    for number in range(ledger.counts.issued):
        ledger.arrive(number, [number], True, 110.0)
    moment = meter.snapshot("settling", 1.0, 110.0)
    assert (moment.counts.delivered, moment.in_flight, moment.oldest_seconds) == (180, 0, None)
    assert "180" in one_line(moment)

    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    console.print(panel(moment))
    assert "settling" in console.file.getvalue()  # type: ignore[attr-defined]
