"""Recorder of the events of source and sink in the ledger."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from delivery.reply_parser import ServerReply
from eilpost.load.dsn import failed_recipients
from eilpost.load.ledger import Ledger
from eilpost.load.source import Stage, error_text
from eilpost.load.workload import DestinationKind, OutgoingMessage, Recipient, Workload, find_load_id, parse_recipient

_FAILED = b"550 5.1.1 No such user at this destination of the load\r\n"
_DEFERRED = b"451 4.3.0 This destination of the load accepts mail at the second attempt\r\n"
_VARIABLE = re.compile(r"<[^>]*>|\b[0-9A-Z]{8,}\b|\br?[0-9]+\.[0-9a-z]+@\S+")


@dataclass(eq=False, slots=True)
class LoadRecorder:
    """The Recorder of the source and the Destinations of the sink, with one ledger."""

    workload: Workload
    ledger: Ledger

    def messages(self, limit: int | None) -> Iterator[OutgoingMessage]:
        """New messages, each recorded in the ledger."""
        while limit is None or self.ledger.counts.issued < limit:
            yield self.workload.message(self.ledger.issue())

    # Recorder

    def dot(self, message: OutgoingMessage) -> None:
        self.ledger.dot(message.number, time.monotonic())

    def accepted(self, message: OutgoingMessage, reply: ServerReply) -> None:
        self.ledger.accept_message(
            message.number, self._indexes(message.recipients), message.size_bytes, reply.lines, time.monotonic()
        )

    def refused(self, message: OutgoingMessage, reply: ServerReply, stage: Stage) -> None:
        self.ledger.refuse(self._indexes(message.recipients), f"{stage}: {_normalized_reply(reply)}")

    def in_doubt(self, message: OutgoingMessage, error: BaseException) -> None:
        if isinstance(error, Exception):  # not a cancellation
            self.ledger.lose_connection(f"after the dot: {error_text(error)}", is_retried=False)
        self.ledger.mark_in_doubt(self._indexes(message.recipients))

    def deferred(self, message: OutgoingMessage, reply: ServerReply, stage: Stage, seconds: float) -> bool:  # noqa: ARG002
        if stage is Stage.DOT:
            self.ledger.resend(self._indexes(message.recipients))
        self.ledger.defer(f"{stage}: {_normalized_reply(reply)}")
        return True

    def connection_refused(self, reason: str) -> None:
        self.ledger.refuse_connection(reason)

    def connection_lost(self, message: OutgoingMessage, stage: Stage, error: Exception) -> bool:  # noqa: ARG002
        self.ledger.lose_connection(f"{stage}: {error_text(error)}", is_retried=True)
        return True

    # Destinations

    def recipient(self, address: str) -> bytes | None:
        for parsed in self._recipients_of_run((address,)):
            if parsed.kind is DestinationKind.FAILING:
                return _FAILED
            if parsed.kind is DestinationKind.DEFERRING and self.ledger.first_attempt(parsed.index):
                return _DEFERRED
        return None

    def message(self, sender: str, recipients: list[str], content: bytes) -> bytes | None:
        load_id = find_load_id(content)
        if not sender:
            self._report(content, load_id)
        elif load_id is None or load_id[0] != self.workload.run:
            self.ledger.counts.foreign += 1
        else:
            number, indexes = load_id[1], self._indexes(recipients)
            intact = number < self.ledger.counts.issued and content.endswith(self.workload.body(number))
            self.ledger.counts.misdirected += len(recipients) - len(indexes)
            self.ledger.arrive(number, indexes, intact, time.monotonic())
        return None

    def _report(self, content: bytes, load_id: tuple[str, int] | None) -> None:
        failed = list(self._recipients_of_run(failed_recipients(content)))
        if failed:
            wrong = sum(recipient.kind is not DestinationKind.FAILING for recipient in failed)
            self.ledger.counts.wrong_bounces += wrong
            self.ledger.bounce([recipient.index for recipient in failed], time.monotonic())
        elif load_id is None or load_id[0] != self.workload.run:
            self.ledger.counts.foreign += 1

    def _indexes(self, addresses: Iterable[str]) -> list[int]:
        return [recipient.index for recipient in self._recipients_of_run(addresses)]

    def _recipients_of_run(self, addresses: Iterable[str]) -> Iterator[Recipient]:
        parsed = map(parse_recipient, addresses)
        return (recipient for recipient in parsed if recipient is not None and recipient.run == self.workload.run)


def _normalized_reply(reply: ServerReply) -> str:
    """A reply without the parts that differ per message."""
    return _VARIABLE.sub("...", str(reply.to_reply()))
