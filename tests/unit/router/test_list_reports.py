"""Reports about the members of a list: to its owner, or bounded, because the sender may be forged."""

from __future__ import annotations

import re

import pytest

from mail.address import Address
from mail.envelope import Recipient
from mail.message import Inline
from mail.record import Accepted, Bounced, Closed, Discarded, DiscardReason, QueueEntry
from mail.route import ToMailbox, ToRelay
from router.decide import MEMBERS_LISTED
from tests.support.builders.routing import (
    CONTENT,
    RouterSimulator,
    accepted,
    address,
    delivered,
    events,
    failed,
    of_kind,
    policy,
    snapshot,
)

LIST, OWNER = "list@example.test", "owner-list@example.test"
HEADERS = CONTENT + b"x" * 20_000


def simulator(members: list[str], *, owner: bool = False) -> RouterSimulator:
    aliases = {LIST: members} | ({OWNER: ["alice@example.test"]} if owner else {})
    return RouterSimulator(policy(relay=ToRelay("127.0.0.1", 25)), snapshot(["alice@example.test"], aliases))


def fail_all(shard: RouterSimulator, *, reopen: bool = False) -> list[bytes]:
    """Fail all dispatched deliveries, one after the other; the reports."""
    for delivery_id, request in list(shard.dispatched.items()):
        recipients = request.delivery.message.envelope.recipients
        shard.attempt(delivery_id, *map(failed, recipients), headers=HEADERS)
        if reopen:
            shard.reopen()
    return reports(shard)


def reports(shard: RouterSimulator) -> list[bytes]:
    contents = [dsn.content for dsn in shard.dsns]
    return [content.data for content in contents if isinstance(content, Inline)]


def listed(report: bytes) -> list[str]:
    return re.findall(r"Final-Recipient: rfc822; (\S+)", report.decode())


def one_line(report: bytes) -> bytes:
    return re.sub(rb"\s+", b" ", report)


@pytest.mark.parametrize("reopen", [False, True])
def test_reports_about_a_list_without_owner_are_bounded(reopen: bool) -> None:
    shard = simulator([f"u{n}@far.test" for n in range(2000)])
    shard.decide(accepted(LIST, sender="forged@victim.test"))
    assert len(shard.dispatched) == 20
    all_reports = fail_all(shard, reopen=reopen)
    assert [len(listed(report)) for report in all_reports] == [MEMBERS_LISTED // n for n in range(1, 21)]
    assert b"<list@example.test> 50 more recipients behind this address failed." in one_line(all_reports[0])
    assert b"<list@example.test> 98 more recipients behind this address failed." in one_line(all_reports[19])
    assert all(LIST not in listed(report) for report in all_reports)
    assert all(b"Subject: hello" in report for report in all_reports)
    assert sum(map(len, all_reports)) < 200_000
    assert (shard.open_by_ledger(), len(shard.queue)) == (0, 0)
    assert events(shard.records).count(Closed()) == 1
    assert len(bounced(shard)) == len(set(bounced(shard))) == 2000


def bounced(shard: RouterSimulator) -> list[Address]:
    return [each for event in events(shard.records) if isinstance(event, Bounced) for each in event.recipients]


def test_deliveries_beyond_the_limit_lead_to_no_report_but_to_an_event() -> None:
    """Also when a recipient that the sender wrote has a delivery before them in the envelope."""
    shard = simulator([f"u{n}@far{n}.test" for n in range(8000)])
    shard.policy = policy(recipients_per_delivery=1, relay=ToRelay("127.0.0.1", 25))
    shard.decide(accepted("direct@far.test", LIST, sender="forged@victim.test"))
    while shard.dispatched:
        fail_all(shard)
        shard.route_due()
    assert len(reports(shard)) == MEMBERS_LISTED + 1
    discarded = [event for event in events(shard.records) if isinstance(event, Discarded)]
    assert {event.reason for event in discarded} == {DiscardReason.MEMBER_LIMIT}
    assert sum(len(event.recipients) for event in discarded) == 8000 - MEMBERS_LISTED
    assert [str(each) for each in bounced(shard) if each.local == "direct"] == ["direct@far.test"]
    assert (shard.open_by_ledger(), len(shard.queue)) == (0, 0)


def test_a_settlement_writes_no_record_of_another_delivery() -> None:
    shard = simulator([f"u{n}@far{n}.test" for n in range(300)])
    shard.policy = policy(recipients_per_delivery=1, relay=ToRelay("127.0.0.1", 25))
    shard.decide(accepted(LIST, sender="someone@far.test"))
    for delivery_id, request in list(shard.dispatched.items()):
        out = shard.attempt(delivery_id, *map(failed, request.delivery.message.envelope.recipients))
        assert of_kind(QueueEntry, out) == []


@pytest.mark.parametrize("last_has_owner", [False, True])
def test_no_delivered_recipient_is_reported_as_failed(last_has_owner: bool) -> None:
    members = [f"u{n}@far.test" for n in range(100)]
    own_list, owner = "own@example.test", "owner-own@example.test"
    aliases = {LIST: members, own_list: ["k@ok.test"], owner: ["alice@example.test"]}
    relay = ToRelay("127.0.0.1", 25)
    shard = RouterSimulator(policy(relay=relay, recipients_per_delivery=100), snapshot(["alice@example.test"], aliases))
    shard.decide(accepted(LIST, own_list if last_has_owner else "bob@ok.test", sender="someone@far.test"))
    first, second = list(shard.dispatched)
    shard.attempt(first, *map(failed, shard.dispatched[first].delivery.message.envelope.recipients), headers=HEADERS)
    recipients = shard.dispatched[second].delivery.message.envelope.recipients
    assert shard.attempt(second, *map(delivered, recipients), headers=HEADERS)
    (dsn,) = shard.dsns
    assert dsn.message.envelope.recipients == (Recipient(address("someone@far.test")),)
    (report,) = reports(shard)
    assert set(listed(report)) < set(members)
    assert b"<list@example.test> 50 more recipients behind this address failed." in one_line(report)


def test_an_alias_with_a_mailbox_of_its_own_is_not_reported_as_failed() -> None:
    shard = simulator(["alice@example.test"])
    shard.snapshot = snapshot(
        ["alice@example.test"], {"alice@example.test": ["alice@example.test", *(f"u{n}@far.test" for n in range(100))]}
    )
    shard.decide(accepted("alice@example.test", sender="someone@far.test"))
    for delivery_id, request in list(shard.dispatched.items()):
        outcome = delivered if isinstance(request.delivery.route, ToMailbox) else failed
        shard.attempt(delivery_id, *map(outcome, request.delivery.message.envelope.recipients))
    assert shard.dsns
    assert all("alice@example.test" not in listed(report) for report in reports(shard))


def test_members_refused_at_once_are_one_report() -> None:
    shard = simulator([f"gone{n}@example.test" for n in range(2000)])
    shard.decide(accepted(LIST, sender="forged@victim.test"))
    (report,) = reports(shard)
    assert len(listed(report)) == MEMBERS_LISTED
    assert b"<list@example.test> 1950 more recipients behind this address failed." in one_line(report)
    assert len(bounced(shard)) == 2000


def test_members_of_a_small_list_are_all_reported() -> None:
    shard = simulator(["a@one.test", "b@two.test", "gone@example.test"])
    shard.policy = policy(recipients_per_delivery=1, relay=ToRelay("127.0.0.1", 25))
    shard.decide(accepted(LIST, sender="someone@far.test"))
    all_listed = [listed(report) for report in fail_all(shard)]
    assert all_listed == [["gone@example.test"], ["a@one.test"], ["b@two.test"]]
    assert [report.count(b"Subject: hello") for report in reports(shard)] == [1, 1, 1]


def test_recipients_that_the_sender_wrote_are_all_reported() -> None:
    shard = simulator([])
    shard.decide(accepted(*(f"u{n}@far.test" for n in range(1000)), sender="someone@far.test"))
    all_reports = fail_all(shard)
    assert sorted(each for report in all_reports for each in listed(report)) == sorted(
        f"u{n}@far.test" for n in range(1000)
    )
    assert sum(report.count(b"Subject: hello") for report in all_reports) == 10  # once for each delivery


def test_the_owner_of_a_list_gets_its_reports() -> None:
    shard = simulator([*(f"u{n}@far.test" for n in range(150)), "gone@example.test"], owner=True)
    out = shard.decide(accepted(LIST, "direct@far.test", sender="someone@far.test"))
    senders = {
        str(recipient.address): str(entry.delivery.message.envelope.reverse_path)
        for entry in of_kind(QueueEntry, out)
        for recipient in entry.delivery.message.envelope.recipients
    }
    assert {senders[f"u{n}@far.test"] for n in range(150)} == {OWNER}
    assert senders["direct@far.test"] == "someone@far.test"
    to = {str(dsn.message.envelope.recipients[0].address) for dsn in of_kind(Accepted, out)}
    assert to == {OWNER}  # also about a member that does not exist
    fail_all(shard)
    of_owner = [dsn for dsn in shard.dsns if dsn.message.envelope.recipients == (Recipient(address(OWNER)),)]
    of_sender = [dsn for dsn in shard.dsns if dsn not in of_owner]
    assert len(of_sender) == 1
    assert len(bounced(shard)) == len(set(bounced(shard))) == 152
    assert shard.open_by_ledger() == 0


def test_a_report_to_a_list_stays_without_a_report() -> None:
    shard = simulator(["u@far.test"], owner=True)
    shard.decide(accepted(LIST, sender=None))
    (request,) = shard.dispatched.values()
    assert request.delivery.message.envelope.reverse_path is None
    fail_all(shard)
    assert shard.dsns == []


def test_an_owner_is_an_alias_or_user_of_that_name() -> None:
    aliases = {LIST: ["alice@example.test"], OWNER: ["alice@example.test"], "bob@example.test": ["alice@example.test"]}
    directory = snapshot(["alice@example.test", "owner-alice@example.test"], aliases)
    for name, owner in (
        ("list", "owner-list"),
        ("LIST+detail", "owner-list"),
        ("alice", "owner-alice"),
        ("bob", None),
        ("owner-list", None),
        ("owner-owner-list", None),
    ):
        found = directory.owner_of(address(f"{name}@example.test"))
        assert found == (None if owner is None else address(f"{owner}@example.test")), name
