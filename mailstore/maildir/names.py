"""Maildir file and directory names: owner to directory, message attributes to file name, both reversible. Pure.

An owner's directory is always inside the root. Source: https://cr.yp.to/proto/maildir.html; `S=`, `W=` and fields after
the flags as in Dovecot and Maildir++ (fields after the flags are preserved).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from mail.message import DeliveryId

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_+.")
_CHUNK = 200  # below NAME_MAX (255) of every file system, with room for the continuation mark
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_EILPOST_NAME = re.compile(
    r"(?P<seconds>\d{1,11})\.M(?P<micros>\d{6})_(?P<id>[A-Za-z0-9_-]{1,64})\.[^,:/]*,S=(?P<size>\d+),W=(?P<wire>\d+)"
    r"(?::2,(?P<flags>[A-Za-z]*)(?:,[^/:]*)?)?\Z"
)
_SECONDS = re.compile(r"(\d{1,11})\.")  # until the year 5138
_WIRE_SIZE = re.compile(r",W=(\d+)(?=[,:]|\Z)")
_UIDL = re.compile(r"[!-~]{1,70}\Z")  # RFC 1939 section 7


def owner_directory(owner: str) -> str:
    """`example.test/alice` for `alice@example.test`, relative to the root.

    Each octet outside `a-z 0-9 - _ + .` and a leading dot are written as `%XX`, so `..`, `/`, NUL and upper case (for
    case-insensitive file systems) never reach the file system. A part longer than a file name continues one directory
    deeper, marked by a final `%`. Plain names equal Dovecot's `%d/%n`.
    """
    local, at, domain = owner.rpartition("@")
    if not at or not local or not domain:
        raise ValueError(f"{owner!r} is not an address key")
    return f"{_encode(domain)}/{_encode(local)}"


def _encode(text: str) -> str:
    octets = text.encode("utf-8", "surrogatepass")
    coded = [chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in octets]
    if coded[0] == ".":
        coded[0] = "%2E"
    parts: list[str] = []
    part = ""
    for character in coded:
        if len(part) + len(character) > _CHUNK:
            parts.append(part + "%")
            part = ""
        part += character
    return "/".join([*parts, part])


@dataclass(frozen=True, slots=True)
class MessageName:
    """Attributes in a file name. `delivery_id` is None for a file of another program; `size_bytes` is the size as read
    (for such files with CRLF line endings), None when the name has none; `micros` is the time since 1970.
    """

    uid: str
    delivery_id: DeliveryId | None
    micros: int | None
    size_bytes: int | None
    flags: str

    @property
    def seen(self) -> bool:
        return "S" in self.flags


def message_name(now_micros: int, delivery_id: DeliveryId, hostname: str, size_bytes: int, virtual_bytes: int) -> str:
    """The name in `tmp` and `new`, without flags: `SECONDS.Mmicros_DELIVERY-ID.HOST,S=size,W=size`."""
    if not _ID.match(delivery_id):
        raise ValueError(f"{delivery_id!r} is not a delivery id")
    seconds, micros = divmod(now_micros, 1_000_000)
    host = hostname[:64].replace("/", "\\057").replace(":", "\\072").replace(",", "\\054")
    return f"{seconds}.M{micros:06d}_{delivery_id}.{host},S={size_bytes},W={virtual_bytes}"


def parse_name(name: str) -> MessageName:
    """Parse the name of a file in `new` or `cur`; accepts any name."""
    match = _EILPOST_NAME.match(name)
    if match is not None:
        micros = int(match["seconds"]) * 1_000_000 + int(match["micros"])
        identity = DeliveryId(match["id"])
        return MessageName(identity, identity, micros, int(match["size"]), match["flags"] or "")
    base, _colon, info = name.partition(":")
    seconds = _SECONDS.match(base)
    virtual = _WIRE_SIZE.search(base)
    short = base.partition(",")[0]
    uid = short if _UIDL.match(short) else blake2b(short.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return MessageName(
        uid,
        None,
        int(seconds[1]) * 1_000_000 if seconds else None,
        int(virtual[1]) if virtual else None,
        _flags(info)[0],
    )


def with_seen(name: str) -> str:
    """The name in `cur` of the same message with the seen flag."""
    base, _colon, info = name.partition(":")
    flags, fields = _flags(info)
    return f"{base}:2,{''.join(sorted({*flags, 'S'}))}{fields}"  # flags in ASCII order


def _flags(info: str) -> tuple[str, str]:
    """Split into flags and the fields after them, with their comma."""
    flags, comma, fields = info[2:].partition(",") if info.startswith("2,") else ("", "", "")
    return flags, comma + fields
