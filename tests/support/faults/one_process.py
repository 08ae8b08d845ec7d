"""Load on one process with all roles, and what of it has arrived."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.support.faults.accounting import AccountedMessage, Sink
from tests.support.servers.eilpost_process import EilpostProcess


def settings(sink: Sink) -> dict[str, dict[str, Any]]:
    """Relay to the sink, with short waits and a spool for messages over 64 KiB."""
    return {
        "delivery": {"relay": f"smtp://127.0.0.1:{sink.port}", "reconnect_backoff": "200ms"},
        "router": {"retry_delays": ["300ms", "500ms"]},
        "spool": {"max_inline_size": "64KiB"},
    }


def postings(chance: random.Random) -> Iterator[AccountedMessage]:
    """Every kind of mail: outbound, local, both, refused, refused once, and large enough for the spool."""
    number = 0
    while True:
        number += 1
        out, home = f"r{number}@remote.test", "alice@example.test"
        kind = chance.random()
        size = 1000 if kind < 0.95 else 300_000
        recipients: tuple[str, ...] = (out,)
        if kind < 0.3:
            recipients = (home,)
        elif kind < 0.4:
            recipients = (out, home)
        elif kind < 0.45:
            recipients = (f"refused{number}@remote.test",)
        elif kind < 0.5:
            recipients = (f"later{number}@remote.test",)
        yield AccountedMessage(f"m{number}", "bob@example.test", recipients, size)


def ids_in(messages: list[bytes]) -> Counter[str]:
    """How often each id is in a mailbox: of messages, or of the messages that DSNs are about."""
    found: Counter[str] = Counter()
    for message in messages:
        ids = set(re.findall(rb"^X-Id: (\S+)\r?$", message, re.MULTILINE))
        assert len(ids) == 1, message[:2000]
        found[ids.pop().decode()] += 1
    return found


class Arrivals:
    """What has arrived of `postings`: in the mailbox of alice, as DSNs in the mailbox of bob, and at the sink."""

    def __init__(self, sink: Sink, box: EilpostProcess) -> None:
        self._sink = sink
        self.messages, self.reports = ids_in(box.maildir("alice")), ids_in(box.maildir("bob"))

    def count(self, id_: str, recipient: str) -> int:
        """How often the message, or a DSN about it, has arrived for a recipient."""
        if recipient == "alice@example.test":
            return self.messages[id_]
        return self.reports[id_] if recipient.startswith("refused") else self._sink.taken[id_, recipient]
