"""Pure alias expansion: from the recipients of an envelope to final recipients.

Ingress checks at RCPT that an address is deliverable (`undeliverable_reply`), the router expands accepted messages
(`expand`). A final recipient occurs once per message and keeps the address that the sender used. A cycle is an error
(5.4.6) only when an address leads to no final recipient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from mail.address import Address
from mail.directory import Destination, IsAlias, IsMailbox, IsRelayed, IsRemote, IsUnknown, Snapshot
from mail.envelope import Recipient
from mail.reply import Reply

UNKNOWN_USER = Reply(550, "5.1.1", "No such mailbox")  # RFC 3463 X.1.1
ALIAS_LOOP = Reply(554, "5.4.6", "Alias loop detected")  # RFC 3463 X.4.6
ALIAS_TOO_DEEP = Reply(554, "5.4.6", "Aliases are nested too deeply")
EMPTY_LIST = Reply(550, "5.2.4", "Mailing list has no members")  # RFC 3463 X.2.4


@dataclass(frozen=True, slots=True)
class FinalRecipient:
    """A recipient after alias expansion. `owner`: of the list that it is a member of, who gets the reports."""

    recipient: Recipient
    destination: Destination
    owner: Address | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A recipient that cannot be delivered, with the reply that gives the reason. `owner` as above."""

    recipient: Recipient
    reply: Reply
    owner: Address | None = None


@dataclass(frozen=True, slots=True)
class Expansion:
    final_recipients: tuple[FinalRecipient, ...]
    refused: tuple[Refusal, ...]


def expand(recipients: Sequence[Recipient], snapshot: Snapshot, depth: int) -> Expansion:
    """All final recipients of a message, without duplicates, in the order of the envelope."""
    expander = _Expander(snapshot, depth)
    for recipient in recipients:
        expander.add(recipient)
    return Expansion(tuple(expander.final_recipients.values()), tuple(expander.refused.values()))


def undeliverable_reply(address: Address, snapshot: Snapshot, depth: int) -> Reply | None:
    """The reply for an address that has no deliverable final recipient, or None. A list is not read beyond its first
    member that is no alias: whether another one is deliverable is known of each alias.
    """
    stack = [iter((address,))]
    seen: set[str] = set()
    while stack:
        target = next(stack[-1], None)
        if target is None:
            stack.pop()
            continue
        result = snapshot.lookup(target)
        match result:
            case IsMailbox() | IsRelayed() | IsRemote():
                return None
            case IsAlias():
                distance = snapshot.alias_distances.get(result.name)
                if distance is not None and len(stack) + distance - 1 <= depth:
                    return None
                if target.key in seen:
                    continue
                seen.add(target.key)
                if not result.targets:
                    return EMPTY_LIST
                if len(stack) > depth:
                    return ALIAS_TOO_DEEP
                stack.append(iter(result.targets))
            case IsUnknown():
                return UNKNOWN_USER
            case _:
                assert_never(result)
    return ALIAS_LOOP


class _Expander:
    """Depth-first expansion with an explicit stack. `_opened`: alias -> number of the recipient that expanded it, and
    the depth. Once the limit of the depth was reached, an alias that is found nearer to its recipient than before is
    expanded again, so that the result does not depend on the order of targets.
    """

    def __init__(self, snapshot: Snapshot, depth: int) -> None:
        self._snapshot = snapshot
        self._depth = depth
        self._current = 0
        self._opened: dict[str, tuple[int, int]] = {}
        self._unresolved: set[int] = set()
        self._limit_reached = False
        self.final_recipients: dict[str, FinalRecipient] = {}
        self.refused: dict[str, Refusal] = {}

    def add(self, recipient: Recipient) -> None:
        """Expand one recipient of the envelope."""
        self._current += 1
        resolved = False
        stack: list[tuple[Recipient, int, IsAlias | None, Address | None]] = [(recipient, 0, None, None)]
        while stack:
            current, depth, parent, owner = stack.pop()
            key = current.address.key
            if (
                (refusal := self.refused.get(key)) is not None
                and refusal.reply == ALIAS_TOO_DEEP
                and depth < self._depth
            ):
                del self.refused[key]
            if key in self.final_recipients or key in self.refused:
                resolved = True  # also reached from another alias
                continue
            result = self._snapshot.lookup(current.address)
            match result:
                case IsAlias():
                    is_self_reference = parent is not None and result.targets is parent.targets
                    if is_self_reference and (own_mailbox := self._snapshot.mailbox_of(current.address)) is not None:
                        # "alice = alice, archive": the alias keeps a copy for its own mailbox
                        self.final_recipients[key] = FinalRecipient(current, IsMailbox(own_mailbox), owner)
                        resolved = True
                    elif key in self._opened and not (self._limit_reached and depth < self._opened[key][1]):
                        opened_by = self._opened[key][0]
                        resolved = resolved or (opened_by != self._current and opened_by not in self._unresolved)
                    else:
                        self._opened[key] = self._current, depth
                        if not result.targets:
                            self.refused[key] = Refusal(current, EMPTY_LIST, owner)
                            resolved = True
                        elif depth >= self._depth:
                            self.refused[key] = Refusal(current, ALIAS_TOO_DEEP, owner)
                            self._limit_reached = True
                            resolved = True
                        else:
                            # RFC 5321 section 3.9.1: the address is replaced, the rest of the envelope stays. Section
                            # 3.9.2: a list with an owner makes an envelope of its own.
                            own = self._snapshot.owner_of(current.address)
                            stack.extend(
                                (
                                    current.readdressed(target) if own is None else Recipient(target),
                                    depth + 1,
                                    result,
                                    own or owner,
                                )
                                for target in reversed(result.targets)
                            )
                case IsUnknown():
                    self.refused[key] = Refusal(current, UNKNOWN_USER, owner)
                    resolved = True
                case IsMailbox() | IsRelayed() | IsRemote():
                    self.final_recipients[key] = FinalRecipient(current, result, owner)
                    resolved = True
                case _:
                    assert_never(result)
        if not resolved:
            self._unresolved.add(self._current)
            self.refused[recipient.address.key] = Refusal(recipient, ALIAS_LOOP)
