"""Frames whose checksum is valid and whose header is malformed, or from a later eilpost."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mail.log.codec import FrameError, decode
from mail.record import Accepted, Attempted, Closed, Dispatched, Event, QueueEntry, Resumed
from mail.route import ToMailbox
from tests.support.builders.records import frame_with_header

MESSAGE = '["01KJMMA2G100000000000007QF","default","2026-03-01T12:00:00Z",[null,[[["a","b.test"]]]],0]'
DELIVERY = f'["01KJMMA2G100000000000007QF-1",{MESSAGE},["mailbox","a@b.test"]]'
STATE = '["active","2026-03-01T12:00:00Z"]'

MESSAGE_1 = '{"q":"01KJMMA2G100000000000007QF","t":"default","r":0,"s":0,"to":[{"a":["a","b.test"]}]}'
DELIVERY_1 = f'{{"i":"01KJMMA2G100000000000007QF-1","m":{MESSAGE_1},"r":["mailbox","a@b.test"]}}'

MALFORMED = {
    "empty": "",
    "not-json": "[",
    "trailing": '["event","Q","2026-03-01T12:00:00Z",["closed"]]]',
    "null": "null",
    "object": "{}",
    "no-fields": "[]",
    "unknown-record": '["later",1]',
    "tag-not-text": "[1]",
    "tag-is-array": '[["event"]]',
    "missing-field": f'["queue_entry",{DELIVERY},{STATE}]',
    "missing-recipients": '["accepted",["Q","default","2026-03-01T12:00:00Z",[null],0],["inline",""]]',
    "number-is-text": f'["dispatched",{DELIVERY},"1",["inline",""]]',
    "number-is-boolean": f'["dispatched",{DELIVERY},true,["inline",""]]',
    "number-is-fraction": f'["dispatched",{DELIVERY},1.5,["inline",""]]',
    "number-of-5000-digits": f'["dispatched",{DELIVERY},{"9" * 5000},["inline",""]]',
    "text-is-number": '["event",1,"2026-03-01T12:00:00Z",["closed"]]',
    "text-is-null": '["event",null,"2026-03-01T12:00:00Z",["closed"]]',
    "time-is-number": '["event","Q",0,["closed"]]',
    "time-of-13-months": '["event","Q","2026-13-01T12:00:00Z",["closed"]]',
    "time-of-year-10000": '["event","Q","10000-01-01T00:00:00Z",["closed"]]',
    "duration-too-long": '["attempted","D",1,[],"2026-03-01T12:00:00Z","P999999999999D"]',
    "unknown-route": f'["queue_entry",{DELIVERY.replace("mailbox", "pigeon")},{STATE},null]',
    "unknown-cause": f'["queue_entry",{DELIVERY},["waiting","2026-03-01T12:00:00Z","bored",""],null]',
    "unknown-detail": '["event","Q","2026-03-01T12:00:00Z",["later"]]',
    "time-without-zone": '["event","Q","2026-03-01T12:00:00",["closed"]]',
    "due-without-zone": f'["queue_entry",{DELIVERY},["waiting","2026-03-01T12:00:00","deferred",""],null]',
    "negative-size": f'["accepted",{MESSAGE[:-2]}-1],["inline",""]]',
    "negative-spooled-size": f'["accepted",{MESSAGE},["spooled","x",-1]]',
    "outcome-reply-999": ('["attempted","D",1,[["delivered",["a","b"],[999,"",""]]],"2026-03-01T12:00:00Z","PT1S"]'),
    "outcome-enhanced-code": (
        '["attempted","D",1,[["failed",["a","b"],[550,"2.0.0",""]]],"2026-03-01T12:00:00Z","PT1S"]'
    ),
    "surrogate": '["event","\\ud800","2026-03-01T12:00:00Z",["closed"]]',
    "deep-array": '["event","Q","2026-03-01T12:00:00Z",["closed"],' + "[" * 200_000 + "]" * 200_000 + "]",
    "deep-object": '["event","Q","2026-03-01T12:00:00Z",["closed"],' + '{"a":' * 200_000 + "1" + "}" * 200_000 + "]",
}

MALFORMED_1 = {
    "empty": "",
    "not-json": "{",
    "trailing": '{"k":"event","q":"Q","t":0,"w":["closed"]}}',
    "null": "null",
    "array": "[]",
    "no-kind": "{}",
    "unknown-record": '{"k":"later"}',
    "kind-is-array": '{"k":[]}',
    "missing-key": f'{{"k":"pending","d":{DELIVERY_1},"s":["hand",0]}}',
    "number-is-text": f'{{"k":"dispatched","d":{DELIVERY_1},"n":"1"}}',
    "number-above-64-bits": f'{{"k":"event","q":"Q","t":{"9" * 30},"w":["closed"]}}',
    "number-of-5000-digits": f'{{"k":"event","q":"Q","t":{"9" * 5000},"w":["closed"]}}',
    "text-is-number": '{"k":"event","q":1,"t":0,"w":["closed"]}',
    "time-is-text": '{"k":"event","q":"Q","t":"0","w":["closed"]}',
    "time-is-null": '{"k":"event","q":"Q","t":null,"w":["closed"]}',
    "message-is-array": '{"k":"accepted","m":[]}',
    "message-is-text": '{"k":"accepted","m":"q"}',
    "content-is-number": f'{{"k":"accepted","m":{MESSAGE_1},"c":5}}',
    "unknown-route": f'{{"k":"pending","d":{DELIVERY_1.replace("mailbox", "pigeon")},"s":["hand",0],"n":0}}',
    "unknown-cause": f'{{"k":"pending","d":{DELIVERY_1},"s":["bored",0,""],"n":0}}',
    "unknown-state": f'{{"k":"pending","d":{DELIVERY_1},"s":["hand"],"n":0}}',
    "state-is-empty": f'{{"k":"pending","d":{DELIVERY_1},"s":[],"n":0}}',
    "state-is-number": f'{{"k":"pending","d":{DELIVERY_1},"s":1,"n":0}}',
    "unknown-detail": '{"k":"event","q":"Q","t":0,"w":["later"]}',
    "detail-is-empty": '{"k":"event","q":"Q","t":0,"w":[]}',
    "outcome-reply-999": '{"k":"attempted","d":"D","n":1,"o":[["delivered",["a","b"],[999,"",""],null]],"t":0,"u":0}',
    "surrogate": '{"k":"event","q":"\\ud800","t":0,"w":["closed"]}',
    "deep-array": '{"k":"event","q":"Q","t":0,"w":["closed"],"z":' + "[" * 200_000 + "]" * 200_000 + "}",
}


def kind_of(header: str) -> type[Any]:
    """The kind that the header names, or Event."""
    kinds = {"accepted": Accepted, "dispatched": Dispatched, "attempted": Attempted, "queue_entry": QueueEntry}
    kinds["pending"] = QueueEntry  # in version 1
    found = re.match(r'\["(\w+)"|\{"k":"(\w+)"', header)
    return kinds.get((found[1] or found[2]) if found else "", Event)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_headers_raise_frame_error(name: str) -> None:
    with pytest.raises(FrameError, match="its header cannot be read"):
        decode(frame_with_header(2, MALFORMED[name].encode()), kind_of(MALFORMED[name]))


@pytest.mark.parametrize("name", MALFORMED_1)
def test_malformed_headers_of_version_1_raise_frame_error(name: str) -> None:
    with pytest.raises(FrameError, match="its header cannot be read"):
        decode(frame_with_header(1, MALFORMED_1[name].encode()), kind_of(MALFORMED_1[name]))


@pytest.mark.parametrize("version", [1, 2])
def test_invalid_utf_8_raises_frame_error(version: int) -> None:
    header = {
        1: b'{"k":"event","q":"\xff","t":0,"w":["closed"]}',
        2: b'["event","\xff","2026-03-01T12:00:00Z",["closed"]]',
    }
    with pytest.raises(FrameError, match="its header cannot be read"):
        decode(frame_with_header(version, header[version]), Event)


def test_surplus_items_are_ignored() -> None:
    """Of a later eilpost, which appended fields."""
    surplus = '["event","Q","2026-03-01T12:00:00Z",["resumed","D",2,["mailbox","a@b.test",{"x":[1]}],null],"x",[[1]]]'
    record = decode(frame_with_header(2, surplus.encode()), Event)
    assert record.detail == Resumed("D", 2, ToMailbox("a@b.test"))


def test_missing_items_are_the_defaults() -> None:
    """Of an earlier eilpost, which did not have the last fields."""
    record = decode(frame_with_header(2, f'["queue_entry",{DELIVERY},{STATE},null]'.encode()), QueueEntry)
    assert (record.attempts, record.last, record.last_remote) == (0, None, None)
    assert record.delivery.message.client is None
    assert not record.delivery.message.envelope.smtputf8


def test_unknown_keys_of_version_1_are_ignored() -> None:
    record = decode(frame_with_header(1, b'{"k":"event","q":"Q","t":0,"w":["closed"],"later":{"a":1}}'), Event)
    assert record.detail == Closed()
