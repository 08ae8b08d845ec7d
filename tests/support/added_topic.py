"""A topic that does not exist yet, compacted and with one shard, as `control` and `usage` will be."""

from __future__ import annotations

from operator import attrgetter

from mail.frame_struct import FrameStruct
from mail.log.topics import ALL_TOPICS, Partitioning, Topic, Topics
from mail.record import Tombstone


class Usage(FrameStruct, frozen=True, tag="usage"):
    """Messages of the running hour of one process."""

    process: str
    messages: int


class UsageTombstone(Tombstone, frozen=True):
    process: str


USAGE = Topic(
    "usage",
    Usage,
    attrgetter("process"),
    lambda _record, key: key,
    tombstone=UsageTombstone,
    partitioning=Partitioning.NONE,
)
WITH_USAGE = Topics((*ALL_TOPICS, USAGE))
