"""Words for people: what routes, waits, ages and sizes are called in a story and in the queue view. Pure.

Times are UTC and say so; ages have two units at most. Next: `eilpost/story.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never

from mail.address import Address
from mail.message import Message
from mail.record import InHand, Pending, Waiting, Why
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved


def state_words(pending: Pending, now: datetime) -> str:
    """The state of an open delivery and what comes next."""
    match pending.state:
        case InHand(since):
            return f"active for {age_words(now - since)}, attempt {pending.attempts + 1}"
        case Waiting() as waiting:
            return why_words(waiting, now, pending.attempts)
        case _:
            assert_never(pending.state)


def why_words(waiting: Waiting, now: datetime | None = None, attempts: int = 0) -> str:
    due = f"at {clock(waiting.due)}"
    if now is not None:
        left = waiting.due - now
        due = f"in {age_words(left)} ({clock(waiting.due)})" if left > timedelta(0) else "now"
    match waiting.why:
        case Why.RETRY:
            return f"attempt {attempts + 1} {due}" if now is not None else f"next attempt {due}"
        case Why.WINDOW:
            return "waits for its turn: its next hop has as many in hand as it may"
        case Why.HOLD:
            return f"held: {waiting.reason}" if waiting.reason else "held"
        case Why.RESOLVING:
            return f"waits for DNS, asked again {due}: {waiting.reason}"
        case _:
            assert_never(waiting.why)


def came_from(message: Message) -> str:
    """Where a message came from, in one line."""
    client = message.client
    if client is None:
        return "written by eilpost itself"
    user = f" as {client.user}" if client.user else ""
    return f"by {client.protocol} from {client.helo} [{client.ip}]{user}"


def sender_words(message: Message) -> str:
    reverse_path = message.envelope.reverse_path
    return str(reverse_path) if reverse_path is not None else "<>"


def names(addresses: Sequence[Address], limit: int = 5) -> str:
    shown = ", ".join(str(address) for address in addresses[:limit])
    return f"{shown} and {len(addresses) - limit} more" if len(addresses) > limit else shown


def route_words(route: Route) -> str:
    match route:
        case ToMailbox(owner):
            return f"mailbox {owner}"
        case ToRelay(host, port, speaks):
            return f"relay {speaks}://{host}:{port}"
        case ToMx(domain, hosts):
            shown = ", ".join(name for _preference, name in hosts[:3])
            return f"MX of {domain} ({shown}{', ...' if len(hosts) > 3 else ''})"
        case Unresolved(domain):
            return f"{domain}, whose DNS has not answered yet"
        case _:
            assert_never(route)


def site_words(route: Route) -> str:
    """The site in a few words, for summaries."""
    match route:
        case ToMailbox():
            return "mailbox"
        case ToMx(domain, hosts):
            return hosts[0][1] if hosts else domain
        case ToRelay() | Unresolved():
            return route.site
        case _:
            assert_never(route)


def suffix(delivery: str) -> str:
    """`-1` of `QUEUEID-1`."""
    return delivery[26:]


def clock(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def age_words(age: timedelta) -> str:
    """ "12 ms", "3.4 s", "2 min 5 s", "3 h 20 min", "4 d 3 h": two units at most."""
    seconds = max(0.0, age.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for big, big_name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {big_name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def size_words(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if size < factor * 999.5:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"
