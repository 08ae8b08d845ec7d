"""Check of all records of an embedded log, page by page, for `eilpost doctor`."""

from __future__ import annotations

from mail.frame_struct import FrameStruct
from mail.log.codec import FrameError, UnknownVersion, decode
from mail.log.embedded.commit import offset_of, split_compacted_key, topic_number_of
from mail.log.embedded.store import Store
from mail.log.topics import CONSUMED_TOPICS, EVENTS, TOPICS, Topics
from mail.record import Event

_PAGE_ROWS = 500


class CheckedPage(FrameStruct, frozen=True):
    """The number of records of one page, and those that cannot be read: (topic, text)."""

    records: int
    damaged: tuple[tuple[str, str], ...] = ()
    of_newer_version: tuple[tuple[str, str], ...] = ()


def check_page(store: Store, cursor: str, topics: Topics = TOPICS) -> tuple[CheckedPage, str | None]:
    """The page after `cursor` ("": the first), and the cursor of the next page; None: this was the last."""
    table, _, after = cursor.partition(" ")
    problems: list[tuple[str, str, FrameError]] = []
    match table:
        case "" | "entry":
            entries = store.all_entries(int(after or 0), _PAGE_ROWS)
            for row in entries:
                number, shard = topic_number_of(row.id)
                if number >= len(CONSUMED_TOPICS):
                    continue  # no reader finds it
                topic = CONSUMED_TOPICS[number]
                try:
                    row.record(topic.record)
                except FrameError as error:
                    problems.append((topic.name, f"shard {shard}, offset {offset_of(row.id)}", error))
            count, following = len(entries), f"entry {entries[-1].id}" if entries else "pending "
        case "pending":
            rows = store.all_compacted(after, _PAGE_ROWS)
            for row_key, frame in rows:
                name, shard_text, key = split_compacted_key(row_key)
                if (compacted := topics.by_name.get(name)) is None:
                    continue  # no reader finds it
                try:
                    decode(frame, compacted.record)
                except FrameError as error:
                    where = f"shard {shard_text.lstrip('0') or 0}, key {key}"
                    problems.append((name, where.encode("utf-8", "replace").decode(), error))
            count, following = len(rows), f"pending {rows[-1][0]}" if rows else "event 0"
        case _:
            events = store.all_events(int(after), _PAGE_ROWS)
            for event_id, frame in events:
                try:
                    decode(frame, Event)
                except FrameError as error:
                    problems.append((EVENTS.name, f"offset {event_id}", error))
            count, following = len(events), f"event {events[-1][0]}" if events else ""
    texts = [(topic, f"{topic}, {where}: {error}", error) for topic, where, error in problems]
    page = CheckedPage(
        count,
        tuple((topic, text) for topic, text, error in texts if not isinstance(error, UnknownVersion)),
        tuple((topic, text) for topic, text, error in texts if isinstance(error, UnknownVersion)),
    )
    return page, following or None
