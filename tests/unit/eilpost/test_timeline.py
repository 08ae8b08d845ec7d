"""A message's history as text and as JSON."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import get_args

import pytest
from msgspec.structs import replace

from eilpost import format, json_output, queue_view, trace_view
from eilpost.output import Output
from eilpost.timeline import State, build_timeline, lines_from, lines_of_event, next_steps
from mail.address import Address
from mail.envelope import Recipient
from mail.log import Backlog
from mail.log.codec import encode
from mail.log.queue_summary import QueueSummary
from mail.message import DeliveryId, QueueId
from mail.outcome import Deferred, Delivered, ExchangerReply, Failed, Outcome
from mail.record import (
    Accepted,
    Active,
    Bounced,
    Closed,
    DeliveryAttempted,
    Discarded,
    DiscardReason,
    Event,
    EventDetail,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    Resumed,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import ToMailbox, ToMx, Unresolved
from tests.support.builders import records as samples
from tests.support.builders.records import ALICE, HOST, LATER, NEVER, NOON, OK, RELAY

ID = samples.queue_id(1)
FIRST = samples.delivery(1).id
SECOND = timedelta(seconds=1)
BOUNCE = samples.queue_id(2)
RETRY = Waiting(NOON + timedelta(minutes=1), WaitCause.DEFERRED, str(LATER))

HISTORY: tuple[EventDetail, ...] = (
    MessageAccepted(samples.message(1)),
    Routed(FIRST, RELAY, (ALICE,), None),
    DeliveryAttempted(FIRST, 1, (Deferred(ALICE, LATER, HOST),), NOON, SECOND, NOON + timedelta(minutes=1)),
    Resumed(FIRST, 2, RELAY),
    DeliveryAttempted(FIRST, 2, (Failed(ALICE, NEVER, HOST),), NOON, SECOND, None),
    Bounced((ALICE,), BOUNCE),
    Closed(),
)


def _events(*what: EventDetail) -> list[Event]:
    return [Event(ID, NOON + number * SECOND, each) for number, each in enumerate(what)]


def _written(*what: EventDetail, queue_entry: tuple[QueueEntry, ...] = ()) -> str:
    timeline = build_timeline(ID, _events(*what), queue_entry, ())
    assert timeline is not None
    out = io.StringIO()
    trace_view.write(timeline, Output(out), NOON + timedelta(seconds=30))
    return out.getvalue()


def test_timeline_is_complete_and_in_order() -> None:
    text = _written(*HISTORY)
    verbs = ("accepted", "routed", "deferred", "waits", "resumed", "failed", "bounced", "closed after 6.0 s")
    places = [text.index(f" {verb} ") if " " not in verb else text.index(verb) for verb in verbs]
    assert places == sorted(places)
    assert f"{HOST} replied 451 4.3.0 Try again later" in text
    assert f"eilpost trace {BOUNCE}" in text


def test_queued_message_shows_its_next_attempt() -> None:
    queue_entry = QueueEntry(samples.delivery(1), RETRY, None, attempts=1, last=LATER, last_remote=HOST)
    text = _written(*HISTORY[:3], queue_entry=(queue_entry,))
    assert "queued" in text
    assert "attempt 2 in 30 s (2026-03-01 12:01:00 UTC)" in text


def _expanded(named: str, mailboxes: str, refused: str = "", later: str = "") -> str:
    """The trace's line about aliases, for named recipients that are then routed or refused."""

    def address(name: str) -> Address:
        return Address(name, "example.test")

    message = samples.message(1)
    recipients = tuple(Recipient(address(name)) for name in named.split())
    message = replace(message, envelope=replace(message.envelope, recipients=recipients))
    first: list[EventDetail] = [MessageAccepted(message)]
    first += [
        Routed(DeliveryId(f"{ID}-1"), ToMailbox(f"{name}@example.test"), (address(name),), None)
        for name in mailboxes.split()
    ]
    if refused:
        first.append(FailedByRouter(tuple(Failed(address(name), NEVER) for name in refused.split())))
    events = [Event(ID, NOON, what) for what in first]
    events += [Event(ID, NOON + SECOND, FailedByRouter((Failed(address(name), NEVER),))) for name in later.split()]
    lines = [line.text.replace("@example.test", "") for line in lines_from(events) if line.verb == "expanded"]
    expanded = json_output.timeline_json(build_timeline(ID, events, (), ()), NOON)["expanded"]  # type: ignore[arg-type]
    assert (expanded is not None) == bool(lines)
    assert len(lines) <= 1
    return lines[0] if lines else ""


DOUBT = " (in total; the history does not record the targets of each alias)"


@pytest.mark.parametrize(
    ("named", "mailboxes", "refused", "later", "says"),
    [
        ("alice", "alice", "", "", ""),
        ("alice bob", "alice bob", "", "", ""),
        ("Alice alice", "alice", "", "", ""),
        ("alice", "alice", "", "alice", ""),
        ("loop", "", "loop", "", ""),
        ("team", "alice bob", "", "", "team -> alice, bob"),
        ("team", "alice", "nobody", "", "team -> alice, nobody"),
        ("team gone", "alice", "gone", "", "team -> alice"),
        ("alice", "alice archive", "", "", "alice -> archive"),
        ("team alice", "alice", "", "", "team -> addresses that are recipients already"),
        ("team staff", "alice bob", "", "", "team, staff -> alice, bob" + DOUBT),
        ("team alice", "alice bob", "", "", "team -> bob" + DOUBT),
    ],
)
def test_alias_expansion_names_address_and_targets(
    named: str, mailboxes: str, refused: str, later: str, says: str
) -> None:
    assert _expanded(named, mailboxes, refused, later) == says


def test_text_and_json_have_the_same_time_of_acceptance() -> None:
    message = samples.message(1)
    event = Event(ID, message.received + SECOND, MessageAccepted(message))  # the router records it later
    head = json_output.event_json(event, message.received)
    assert (head["time"], head["seconds"]) == (message.received.isoformat(), 0)
    assert lines_of_event(event)[0].time == message.received


def test_message_before_routing_is_accepted() -> None:
    timeline = build_timeline(ID, (), (), (samples.accepted(1),))
    assert timeline is not None
    assert timeline.state is State.ACCEPTED
    assert "durable in the log" in next_steps(timeline, NOON)[0].text
    out = io.StringIO()
    trace_view.write(timeline, Output(out), NOON)
    assert "accepted, not routed yet" in out.getvalue()
    assert "\n\n\n" not in out.getvalue()


def test_size_includes_its_unit() -> None:
    assert f"{samples.message(1).size_bytes} B with our Received field\n" in _written(*HISTORY)


def test_unknown_message_has_no_timeline() -> None:
    assert build_timeline(ID, (), (), ()) is None


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            Routed(FIRST, Unresolved("example.org"), (ALICE,), Waiting(NOON, WaitCause.UNRESOLVED, "no answer")),
            "unresolved, next DNS query",
        ),
        (
            Routed(FIRST, RELAY, (ALICE,), Waiting(NOON, WaitCause.THROTTLED, "")),
            "throttled: its site or the shard has reached a limit",
        ),
        (Routed(FIRST, ToMx("example.org", ((1, "a.test"), (2, "b.test"))), (ALICE,), None), "(a.test, b.test)"),
        (FailedByRouter((Failed(ALICE, NEVER),)), "(by the router): "),
        (Discarded((ALICE,)), "because the sender is <>"),
        (Discarded((ALICE,), DiscardReason.MEMBER_LIMIT), "behind an alias without owner are limited"),
        (DeliveryAttempted(FIRST, 1, (Delivered(ALICE, OK),), NOON, SECOND, None), "250 2.0.0 Ok: queued as 4F1C"),
    ],
)
def test_each_event_has_a_text(what: EventDetail, says: str) -> None:
    assert any(says in line.text for line in lines_of_event(_events(what)[0]))


def test_each_exchanger_of_an_attempt_is_shown() -> None:
    asked = (ExchangerReply("mx1.test[192.0.2.1]:25", LATER), ExchangerReply("mx2.test[192.0.2.2]:25", OK))
    attempt = DeliveryAttempted(FIRST, 3, (Delivered(ALICE, OK, HOST),), NOON, SECOND, None, asked)
    lines = [(line.verb, line.text) for line in lines_of_event(_events(attempt)[0])]
    assert lines[:2] == [
        ("asked", "mx1.test[192.0.2.1]:25 (attempt 3): 451 4.3.0 Try again later"),
        ("asked", "mx2.test[192.0.2.2]:25 (attempt 3): 250 2.0.0 Ok: queued as 4F1C"),
    ]
    assert [line[0] for line in lines[2:]] == ["delivered"]
    assert json_output.event_json(_events(attempt)[0], None)["asked"][0] == {
        "remote": "mx1.test[192.0.2.1]:25", "reply": "451 4.3.0 Try again later"
    }  # fmt: skip


def test_reply_cannot_send_control_codes_to_the_terminal() -> None:
    rude = Reply(550, "5.0.0", "\x1b[2Jgone\r\nX")
    text = _written(
        HISTORY[0],
        DeliveryAttempted(FIRST, 1, (Failed(ALICE, rude, "evil\x1b]0;x\x07"),), NOON, SECOND, None),
        Closed(),
    )
    assert all(character.isprintable() or character == "\n" for character in text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_output_has_only_our_colour_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    Output(out).write(("\x1b[2J\x9b2J \u202e[red]not ours[/red] :smile: ", "bold"), ("x" * 300, "red"))
    text = out.getvalue()
    assert text.count("\n") == 1  # neither wrapped nor cut
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert plain == f"?[2J?2J ?[red]not ours[/red] :smile: {'x' * 300}\n"
    assert text != plain


def test_json_has_no_control_codes_and_the_same_content() -> None:
    rude = {"reply": "\x9b2J \x1b[2J \u202eevil\u2069 \x7f \U000e0001 \n ü 漢 \U0001f600"}
    output = json_output.to_json(rude)
    assert json.loads(output) == rude
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "ü 漢 \U0001f600" in output


def test_json_has_the_state_of_a_waiting_delivery() -> None:
    routed = json_output.event_json(Event(ID, NOON, Routed(FIRST, RELAY, (ALICE,), RETRY)), None)
    assert routed["waits"] == {"state": "deferred", "due": RETRY.due.isoformat(), "reason": RETRY.reason}


@pytest.mark.parametrize("kind", [*get_args(EventDetail), *get_args(Outcome)])
def test_json_values_do_not_depend_on_class_names(kind: type) -> None:
    outcome = (Delivered(ALICE, OK), Deferred(ALICE, LATER), Failed(ALICE, NEVER))
    details = {type(each): each for each in (*HISTORY, Discarded((ALICE,)), FailedByRouter(outcome[2:]))}
    values = [json_output.event_name(detail) for detail in details.values()]
    results = [json_output.outcome_json(each)["result"] for each in outcome]
    assert {*details, *map(type, outcome)} == {*get_args(EventDetail), *get_args(Outcome)}
    name, kind.__name__ = kind.__name__, "Renamed"
    try:
        assert [json_output.event_name(detail) for detail in details.values()] == values
        assert [json_output.outcome_json(each)["result"] for each in outcome] == results
    finally:
        kind.__name__ = name


def test_json_is_complete() -> None:
    timeline = build_timeline(ID, _events(*HISTORY), (), ())
    assert timeline is not None
    parsed = json_output.timeline_json(timeline, NOON)
    assert [event["event"] for event in parsed["events"]] == [
        "accepted",
        "routed",
        "attempted",
        "resumed",
        "attempted",
        "bounced",
        "closed",
    ]
    assert parsed["events"][2]["outcomes"][0] == {
        "recipient": "alice@example.test",
        "result": "deferred",
        "reply": "451 4.3.0 Try again later",
        "status": "4.3.0",
        "remote": HOST,
    }
    assert parsed["state"] == "closed"
    assert parsed["bounces"] == [BOUNCE]


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(-5, "0 ms"), (0.0123, "12 ms"), (3.44, "3.4 s"), (59.96, "1 min"), (125, "2 min 5 s"), (3600 * 30, "1 d 6 h")],
)
def test_ages_have_at_most_two_units(seconds: float, says: str) -> None:
    assert format.format_age(timedelta(seconds=seconds)) == says


@pytest.mark.parametrize(
    ("size", "says"), [(999, "999 B"), (10_240, "10.2 kB"), (999_900, "1.0 MB"), (2_500_000_000, "2.5 GB")]
)
def test_sizes_have_units(size: int, says: str) -> None:
    assert format.format_bytes(size) == says


class ChangingHistory:
    """A HistoryLog that changes with each read of the history; the last state stays."""

    def __init__(self, *looks: tuple[int, bool], input_from: int = 0) -> None:
        """`looks`: number of events and whether a delivery is open, for each read."""
        self._looks = looks
        self._input_from = input_from
        self.seen = -1
        self.queue_reads = 0

    def _now(self) -> tuple[int, bool]:
        return self._looks[min(max(self.seen, 0), len(self._looks) - 1)]

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        self.seen += 1
        for event in _events(*HISTORY)[: self._now()[0]]:
            yield event

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        assert queue_id is not None  # never the whole queue for one message
        self.queue_reads += 1
        if self._now()[1]:
            yield QueueEntry(samples.delivery(1), RETRY, None, attempts=1, last=LATER)

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        return [samples.accepted(1)] if not self._now()[0] and self.seen < self._input_from else []

    async def backlog(self) -> Backlog:
        return Backlog(0, 0, 0)


async def _followed(log: ChangingHistory, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str]:
    monkeypatch.setattr(trace_view, "POLL", timedelta(0))
    out = io.StringIO()
    known = await trace_view.follow(log, ID, Output(out), lambda: NOON)
    return known, out.getvalue()


async def test_follow_writes_each_line_once_and_ends_when_the_message_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ChangingHistory((0, False), (2, True), *[(3, True)] * 30, (5, True), (7, False), input_from=1)
    known, text = await _followed(log, monkeypatch)
    assert known
    for verb in ("accepted   by", "routed", "deferred", "resumed", "failed", "bounced", "closed     no delivery"):
        assert text.count(verb) == 1, (verb, text)
    assert log.queue_reads == 4  # not at each of the 30 reads without a new event


async def test_follow_reads_the_queue_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ChangingHistory(*[(3, True)] * (3 * trace_view.IDLE_POLLS), (7, False))
    assert (await _followed(log, monkeypatch))[0]
    assert 3 <= log.queue_reads <= 5


async def test_message_routed_between_two_reads_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [
        timeline.state for timeline in await trace_view.load_timelines(ChangingHistory((0, False), (7, False)), ID)
    ] == [State.CLOSED]
    assert (await _followed(ChangingHistory((0, False), (7, False)), monkeypatch))[0]
    assert await trace_view.load_timelines(ChangingHistory((0, False)), ID) == []
    assert await _followed(ChangingHistory((0, False)), monkeypatch) == (False, "")


def _queue(*lines: QueueEntry, site: str | None = None, limit: int = 50, top: int | None = None) -> str:
    summary = QueueSummary(site=site, limit=limit)
    for line in lines:
        summary.add(encode(line) or b"")
    out = io.StringIO()
    queue_view.write(summary, Backlog(0, 0, 0), Output(out), NOON + timedelta(seconds=30), top)
    return out.getvalue()


def test_queue_view_shows_the_oldest_and_totals_of_all() -> None:
    mailbox = QueueEntry(samples.delivery(1, ToMailbox("alice@example.test")), Active(NOON), None)
    retry = QueueEntry(samples.delivery(2), RETRY, None, attempts=3, last=LATER, last_remote=HOST)
    text = _queue(mailbox, retry)
    assert "active for 30 s, attempt 1" in text
    assert "attempt 4 in 30 s" in text
    assert "3 attempts" in text
    assert f"{HOST} replied 451 4.3.0" in text
    assert "mailbox" in _queue(mailbox, retry, site="mailb")
    assert "relay.example.test" not in _queue(mailbox, retry, site="mailb")
    assert f"... and 1 more (--after {mailbox.delivery.id} shows the next," in _queue(mailbox, retry, limit=1)
    top = _queue(mailbox, retry, retry, top=1)
    assert "... and 1 more sites and states" in top
    assert ("relay.example.test" in top, "mailbox" in top) == (True, False)
    assert text.splitlines()[-1].split()[:3] == ["all", "2", "2"]


def test_no_match_differs_from_an_empty_queue() -> None:
    line = QueueEntry(samples.delivery(1), RETRY, None)
    assert _queue(line, site="zzz") == "no site matches 'zzz'; 1 delivery is open at other sites\n"
    assert "2 deliveries are open" in _queue(line, replace(line, delivery=samples.delivery(2)), site="zzz")
    assert _queue(site="zzz") == "the queue is empty\n"


def test_empty_queue_is_reported() -> None:
    assert _queue() == "the queue is empty\n"


def test_long_recipient_lists_are_counted() -> None:
    many = [Address(f"u{number}", "example.test") for number in range(7)]
    assert format.format_addresses(many).endswith("u4@example.test and 2 more")
