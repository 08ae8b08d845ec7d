"""Words for people: what routes, waits, ages and sizes are called in a story and in the queue view. Pure.

Times are UTC and say so; ages have two units at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never

from mail.address import Address
from mail.message import Message
from mail.record import Active, Pending, WaitCause, Waiting
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved


def format_state(pending: Pending, now: datetime) -> str:
    """The state of an open delivery and what comes next."""
    match pending.state:
        case Active(since):
            return f"active for {format_age(now - since)}, attempt {pending.attempts + 1}"
        case Waiting() as waiting:
            return format_wait(waiting, now, pending.attempts)
        case _:
            assert_never(pending.state)


def format_wait(waiting: Waiting, now: datetime | None = None, attempts: int = 0) -> str:
    due = f"at {format_time(waiting.due)}"
    if now is not None:
        left = waiting.due - now
        due = f"in {format_age(left)} ({format_time(waiting.due)})" if left > timedelta(0) else "now"
    match waiting.cause:
        case WaitCause.DEFERRED:
            return f"attempt {attempts + 1} {due}" if now is not None else f"next attempt {due}"
        case WaitCause.THROTTLED:
            return "waits for its turn: its next hop has as many in hand as it may"
        case WaitCause.HELD:
            return f"held: {waiting.reason}" if waiting.reason else "held"
        case WaitCause.UNRESOLVED:
            return f"waits for DNS, asked again {due}: {waiting.reason}"
        case _:
            assert_never(waiting.cause)


def format_origin(message: Message) -> str:
    """Where a message came from, in one line."""
    client = message.client
    if client is None:
        return "written by eilpost itself"
    user = f" as {client.user}" if client.user else ""
    return f"by {client.protocol} from {client.helo} [{client.ip}]{user}"


def format_sender(message: Message) -> str:
    reverse_path = message.envelope.reverse_path
    return str(reverse_path) if reverse_path is not None else "<>"


def format_addresses(addresses: Sequence[Address], limit: int = 5) -> str:
    shown = ", ".join(str(address) for address in addresses[:limit])
    return f"{shown} and {len(addresses) - limit} more" if len(addresses) > limit else shown


def format_route(route: Route) -> str:
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


def format_site(route: Route) -> str:
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


def delivery_suffix(delivery: str) -> str:
    """`-1` of `QUEUEID-1`."""
    return delivery[26:]


def format_time(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def format_age(age: timedelta) -> str:
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


def format_bytes(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if size < factor * 999.5:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"
