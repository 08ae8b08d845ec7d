"""Expands aliases and lists into final recipients. Pure; asks one snapshot of the directory.

Ingress looks behind a name before it takes mail for it (`dead_end`), the router expands what was taken (`expand`).

What a name stands for is a set: an alias that leads back to itself adds nothing, and only a name that leads nowhere
else is a loop (5.4.6). A final recipient appears once in a message, however many ways lead to it, and remembers the
address the sender wrote. The directory may have changed since ingress looked: who has gone meanwhile fails here
(5.1.1). Next: `router/nexthop.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from mail.address import Address
from mail.directory import IsAlias, IsElsewhere, IsMailbox, IsRelayed, IsUnknown, Place, Snapshot
from mail.envelope import Recipient
from mail.reply import Reply

UNKNOWN_USER = Reply(550, "5.1.1", "No such mailbox")  # RFC 3463 X.1.1
ALIAS_LOOP = Reply(554, "5.4.6", "The address is an alias that leads back to itself")  # RFC 3463 X.4.6
ALIAS_TOO_DEEP = Reply(554, "5.4.6", "The address is an alias of too many aliases")
EMPTY_LIST = Reply(550, "5.2.4", "The address is a list without members")  # RFC 3463 X.2.4


@dataclass(frozen=True, slots=True)
class Final:
    """A recipient no alias stands between any more."""

    recipient: Recipient
    place: Place


@dataclass(frozen=True, slots=True)
class Refusal:
    """A recipient that will never be delivered to, and why."""

    recipient: Recipient
    reply: Reply


@dataclass(frozen=True, slots=True)
class Expansion:
    finals: tuple[Final, ...]
    refused: tuple[Refusal, ...]


def expand(recipients: Sequence[Recipient], snapshot: Snapshot, depth: int) -> Expansion:
    """All final recipients of a message, each once, in the order of the envelope."""
    walk = _Walk(snapshot, depth)
    for recipient in recipients:
        walk.visit(recipient)
    return Expansion(tuple(walk.finals.values()), tuple(walk.refused.values()))


def dead_end(address: Address, snapshot: Snapshot, depth: int) -> Reply | None:
    """Why mail for `address` would reach nobody at all, or None. Of a list it reads no more than up to the first member
    who would get mail.
    """
    ways = [iter((address,))]
    seen: set[str] = set()
    while ways:
        to = next(ways[-1], None)
        if to is None:
            ways.pop()
            continue
        found = snapshot.find(to)
        match found:
            case IsMailbox() | IsRelayed() | IsElsewhere():
                return None
            case IsAlias():
                if to.key in seen:
                    continue
                seen.add(to.key)
                if len(ways) <= depth:
                    ways.append(iter(found.targets))
            case IsUnknown():
                pass
            case _:
                assert_never(found)
    # Nobody, it seems; the router's own answer is the last word.
    expansion = expand([Recipient(address, address)], snapshot, depth)
    return None if expansion.finals else expansion.refused[0].reply


class _Walk:
    """Depth first, with an explicit stack. `seen`: the aliases opened for this message, and by which visit."""

    def __init__(self, snapshot: Snapshot, depth: int) -> None:
        self._snapshot = snapshot
        self._depth = depth
        self._visit = 0
        self._seen: dict[str, int] = {}
        self._fruitless: set[int] = set()
        self.finals: dict[str, Final] = {}
        self.refused: dict[str, Refusal] = {}

    def visit(self, recipient: Recipient) -> None:
        """Follow one recipient of the envelope to all its ends."""
        self._visit += 1
        fruitful = False
        stack: list[tuple[Recipient, int, IsAlias | None]] = [(recipient, 0, None)]
        while stack:
            current, depth, parent = stack.pop()
            key = current.address.key
            if key in self.finals or key in self.refused:
                fruitful = True  # another way leads there as well
                continue
            found = self._snapshot.find(current.address)
            match found:
                case IsAlias():
                    itself = parent is not None and found.targets is parent.targets
                    if itself and (own := self._snapshot.mailbox_of(current.address)) is not None:
                        # "alice = alice, archive": the alias keeps a copy for its own mailbox
                        self.finals[key] = Final(current, IsMailbox(own))
                        fruitful = True
                    elif key in self._seen:
                        opened = self._seen[key]
                        fruitful = fruitful or (opened != self._visit and opened not in self._fruitless)
                    else:
                        self._seen[key] = self._visit
                        if not found.targets:
                            self.refused[key] = Refusal(current, EMPTY_LIST)
                            fruitful = True
                        elif depth >= self._depth:
                            self.refused[key] = Refusal(current, ALIAS_TOO_DEEP)
                            fruitful = True
                        else:
                            stack.extend(
                                (replace(current, address=to), depth + 1, found) for to in reversed(found.targets)
                            )
                case IsUnknown():
                    self.refused[key] = Refusal(current, UNKNOWN_USER)
                    fruitful = True
                case IsMailbox() | IsRelayed() | IsElsewhere():
                    self.finals[key] = Final(current, found)
                    fruitful = True
                case _:
                    assert_never(found)
        if not fruitful:
            self._fruitless.add(self._visit)
            self.refused[recipient.address.key] = Refusal(recipient, ALIAS_LOOP)
