"""Followers of compacted topics in the process that writes them, and the decoding of what a follower gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from mail.log.codec import FrameError, UnknownVersion, decode
from mail.log.damaged import Damaged
from mail.log.topics import Topic


class KeyedFrame(NamedTuple):
    """The last frame of a key; None: a tombstone."""

    shard: int
    key: str
    frame: bytes | None


def decode_keyed(topic: Topic, keyed: KeyedFrame) -> Any:
    """The record, the tombstone or Damaged. Raises UnknownVersion."""
    shard, key, frame = keyed
    if frame is None:
        assert topic.tombstone is not None
        return topic.tombstone(key)
    try:
        return decode(frame, topic.record)
    except UnknownVersion:
        raise
    except FrameError as reason:
        return Damaged(topic.name, shard, None, key, frame, str(reason))


class _Follower:
    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.changes: dict[tuple[int, str], KeyedFrame] = {}  # at most one for each key
        self.changed = asyncio.Event()


class Followers:
    """`newer` makes the error for a frame of a newer version, from its position and the reason."""

    def __init__(self, newer: Callable[[str, UnknownVersion], Exception]) -> None:
        self._newer = newer
        self._followers: list[_Follower] = []

    @property
    def topics(self) -> Sequence[Topic]:
        """The topics that are followed."""
        return [follower.topic for follower in self._followers]

    def on_written(self, topic: Topic, changes: Sequence[KeyedFrame]) -> None:
        """These changes are durable."""
        for follower in self._followers:
            if follower.topic is topic and changes:
                follower.changes.update({(change.shard, change.key): change for change in changes})
                follower.changed.set()

    async def follow(
        self, topic: Topic, read_all: Callable[[], Awaitable[Sequence[KeyedFrame]]]
    ) -> AsyncIterator[Sequence[Any]]:
        """See `TopicFollower.follow`. `read_all` returns the last frame of each key."""
        follower = _Follower(topic)
        self._followers.append(follower)  # first: a change during `read_all` may be returned twice, but is never missed
        try:
            yield self._decode(topic, await read_all())
            while await follower.changed.wait():
                follower.changed.clear()
                changes, follower.changes = follower.changes, {}
                yield self._decode(topic, list(changes.values()))
        finally:
            self._followers.remove(follower)

    def _decode(self, topic: Topic, frames: Sequence[KeyedFrame]) -> Sequence[Any]:
        records = []
        for keyed in frames:
            try:
                records.append(decode_keyed(topic, keyed))
            except UnknownVersion as reason:
                position = f"{topic.name}, shard {keyed.shard}, key {keyed.key}"
                raise self._newer(position, reason) from None
        return records
