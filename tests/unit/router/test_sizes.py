"""Tests of record sizes against the maximum record size of the log."""

from __future__ import annotations

import pytest

from mail.log.codec import encode
from mail.message import Inline
from mail.record import Event, FailedByRouter, MessageAccepted
from mail.settings import Settings
from tests.support.builders.routing import RouterSimulator, accepted, events, snapshot


@pytest.mark.parametrize("sender", ["sender@far.test", None])
def test_record_size_is_bounded_for_many_recipients(sender: str | None) -> None:
    simulator = RouterSimulator(snapshot=snapshot())
    names = [f"{'n' * 50}{number}@example.test" for number in range(3000)]
    out = simulator.decide(accepted(*names, sender=sender))
    refused = [detail for detail in events(out) if isinstance(detail, FailedByRouter)]
    assert [len(detail.outcomes) for detail in refused] == [200] * 15
    assert simulator.ledger["failed" if sender else "discarded"] == 3000
    frames = [
        encode(record)
        for record in out
        if not (isinstance(record, Event) and isinstance(record.detail, MessageAccepted))
    ]
    assert max(len(frame) for frame in frames if frame is not None) < 256 << 10
    assert simulator.open_by_ledger() == 0


def test_largest_accepted_message_fits_into_a_record() -> None:
    most = Settings.model_json_schema()["$defs"]["IngressSettings"]["properties"]["max_recipients"]["maximum"]
    domain = ".".join("d" * 60 for _ in range(3)) + ".test"
    recipients = [f"{number:064}@{domain}" for number in range(most)]
    assert len(recipients[0]) == 252
    frame = encode(accepted(*recipients, content=Inline(b"x" * (256 << 10))))
    assert frame is not None
    assert len(frame) < 4 << 20
