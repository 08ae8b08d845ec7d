"""Reports about the members of a list: to its owner, or bounded, because the sender may be forged."""

from __future__ import annotations

import re

import pytest

from mail.envelope import Recipient
from mail.message import Inline
from mail.record import Accepted, Bounced, Closed, QueueEntry
from mail.route import ToRelay
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


@pytest.mark.parametrize("reopen", [False, True])
def test_reports_about_a_list_without_owner_are_bounded(reopen: bool) -> None:
    shard = simulator([f"u{n}@far.test" for n in range(2000)])
    mail = accepted(LIST, sender="forged@victim.test")
    shard.decide(mail)
    assert len(shard.dispatched) == 20
    first, last = fail_all(shard, reopen=reopen)
    assert len(listed(first)) == MEMBERS_LISTED
    assert first.count(b"Subject: hello") == 1
    assert listed(last) == [LIST]
    assert b"Subject: hello" not in last
    assert b"2000 recipients behind this address failed, of which 50 are reported" in re.sub(rb"\s+", b" ", last)
    assert len(first) + len(last) < 60_000
    assert (shard.open_by_ledger(), len(shard.queue), shard.queue.failed_members(mail.message.queue_id)) == (0, 0, 0)
    assert events(shard.records).count(Closed()) == 1


def test_members_refused_at_once_are_one_report() -> None:
    shard = simulator([f"gone{n}@example.test" for n in range(2000)])
    shard.decide(accepted(LIST, sender="forged@victim.test"))
    (report,) = reports(shard)
    assert len(listed(report)) == MEMBERS_LISTED + 1
    assert b"2000 recipients behind this address failed" in re.sub(rb"\s+", b" ", report)


def test_members_of_a_small_list_are_all_reported() -> None:
    shard = simulator(["a@one.test", "b@two.test", "gone@example.test"])
    shard.policy = policy(recipients_per_delivery=1, relay=ToRelay("127.0.0.1", 25))
    shard.decide(accepted(LIST, sender="someone@far.test"))
    all_listed = [listed(report) for report in fail_all(shard)]
    assert all_listed == [["gone@example.test"], ["a@one.test"], ["b@two.test"]]
    assert [report.count(b"Subject: hello") for report in reports(shard)] == [1, 0, 0]


def test_recipients_that_the_sender_wrote_are_all_reported() -> None:
    shard = simulator([])
    shard.decide(accepted(*(f"u{n}@far.test" for n in range(1000)), sender="someone@far.test"))
    all_reports = fail_all(shard)
    assert sorted(each for report in all_reports for each in listed(report)) == sorted(
        f"u{n}@far.test" for n in range(1000)
    )
    assert sum(report.count(b"Subject: hello") for report in all_reports) == 10  # once for each delivery


def test_the_last_success_of_a_list_ends_with_the_number_of_failures() -> None:
    shard = simulator([f"u{n}@far.test" for n in range(200)])
    shard.decide(accepted(LIST, sender="someone@far.test"))
    first, second = list(shard.dispatched)
    recipients = shard.dispatched[first].delivery.message.envelope.recipients
    shard.attempt(first, *map(failed, recipients), headers=HEADERS)
    assert len(reports(shard)) == 1
    shard.attempt(second, *map(delivered, shard.dispatched[second].delivery.message.envelope.recipients))
    assert listed(reports(shard)[-1]) == [LIST]
    assert b"100 recipients behind this address failed" in re.sub(rb"\s+", b" ", reports(shard)[-1])


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
    reported = [each for event in events(shard.records) if isinstance(event, Bounced) for each in event.recipients]
    assert len(reported) == len(set(reported)) == 152
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


def test_a_quarantined_report_keeps_the_number_of_failed_members() -> None:
    shard = simulator([f"u{n}@far.test" for n in range(200)])
    mail = accepted(LIST, sender="someone@far.test")
    shard.decide(mail)
    first, second = list(shard.dispatched)
    shard.attempt(first, *map(failed, shard.dispatched[first].delivery.message.envelope.recipients))
    recipients = shard.dispatched[second].delivery.message.envelope.recipients
    shard.quarantine(shard.attempted(second, *map(failed, recipients)))
    assert shard.queue.failed_members(mail.message.queue_id) == 100
