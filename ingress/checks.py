"""Steps (checks and stamps) between the final dot and the append. Pure.

A listener has one ordered list of these steps (`Policy.steps`). A step sees the draft with the changes of earlier ones,
which is what the next hop will receive.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ingress import replies
from ingress.draft import Draft, Prepend, Remove
from ingress.received import count_hops, received_field
from mail.reply import Reply


class Step(Struct, frozen=True):
    """`run` returns the reply that refuses the message, or a change of the draft. It does no I/O; `in_thread`: it needs
    so much CPU that other sessions would wait.
    """

    run: Callable[[Draft], Reply | Prepend | Remove | None]
    in_thread: bool = False


def check_size(draft: Draft) -> Reply | None:
    return replies.TOO_LARGE if draft.message.size_bytes > draft.facts.max_size else None


def check_hops(draft: Draft) -> Reply | None:
    return replies.TOO_MANY_HOPS if count_hops(draft.header) > draft.facts.max_hops else None


def add_received(draft: Draft) -> Prepend:
    message = draft.message
    assert message.client is not None
    envelope = message.envelope
    return Prepend(
        received_field(
            client=message.client,
            hostname=draft.facts.hostname,
            queue_id=message.queue_id,
            recipient=envelope.recipients[0].original if len(envelope.recipients) == 1 else None,
            now=message.received,
        )
    )


MX_STEPS = (Step(check_size), Step(check_hops), Step(add_received))
