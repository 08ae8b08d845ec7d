"""Fuzz targets: one function for each parser of octets that a peer, a file or a log can contain.

A target takes any octets, raises nothing but for a fault, and asserts what holds for every input. `__main__.py` runs
them under libFuzzer, `test_targets.py` with the inputs of `corpus/`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from email import message_from_bytes, policy
from typing import Any

from delivery.reply_parser import TEXT_MAX, MalformedReply, ReplyParser
from ingress import esmtp
from ingress.content import content_start, normalize
from ingress.esmtp import LONGEST_LINE
from ingress.framer import Framer
from ingress.received import count_hops, received_field
from mail.address import Address, AddressError, domain_ascii, parse_domain
from mail.directory import DirectoryUnusable
from mail.directory.toml import parse_directory
from mail.envelope import Recipient
from mail.folding import LINE_OCTETS_MAX, fold
from mail.header_section import header_section, without_field
from mail.log.codec import MAGIC, FrameError, decode, encode
from mail.log.kafka.api_versions import NotABroker, decode_response
from mail.message import Client, Inline, QueueId
from mail.printable import escape_json
from mail.record import Accepted, Attempted, Dispatched, Event, QueueEntry
from mail.reply import Reply
from mail.toml_syntax import TomlError, parse_toml
from mailstore.maildir.names import parse_name
from mailstore.pop3 import command as pop3
from router.dsn import QUOTED_BYTES_MAX, FailedRecipient, failure_dsn
from tests.support.builders.routing import message
from tests.support.clients.session_driver import SessionDriver

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUEUE_ID = QueueId("01M80000000000000000000DSN")
_KINDS = (Accepted, Dispatched, Attempted, QueueEntry, Event)


def addresses(data: bytes) -> None:
    """Addresses and domains; every address can be written into a command and read again."""
    text = data.decode("utf-8", "replace")
    for utf8 in (False, True):
        try:
            address = Address.parse(text, utf8=utf8)
        except AddressError:
            continue
        written = str(address)
        assert Address.parse(written, utf8=True) == address
        assert utf8 or written.isascii()
        assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in written)
        assert address.domain_ascii.isascii()
        assert address.key == Address.parse(written, utf8=True).key
    try:
        domain = parse_domain(text, utf8=True)
    except AddressError:
        return
    assert parse_domain(domain, utf8=True) == domain
    assert domain_ascii(domain).isascii()


def smtp_commands(data: bytes) -> None:
    """Command lines and their arguments: a value, or a reply that refuses the line."""
    for line in data.split(b"\n"):
        command = esmtp.parse_command(line)
        if isinstance(command, Reply):
            assert command.code >= 500
            continue
        _, argument = command
        for result in (
            esmtp.parse_hello(argument),
            *(esmtp.parse_mail(argument, extended=extended) for extended in (False, True)),
            *(esmtp.parse_rcpt(argument, extended=True, utf8=utf8) for utf8 in (False, True)),
            esmtp.parse_vrfy(argument),
        ):
            assert not isinstance(result, Reply) or result.code >= 500
            if isinstance(result, str):
                assert "\r" not in result
                assert "\n" not in result


def smtp_session(data: bytes) -> None:
    """A session whose input arrives in two packets: the replies are those to one packet."""
    cut = data[0] if data else 0
    whole, halves = SessionDriver(), SessionDriver()
    whole.send(data[1:])
    halves.send(data[1:][:cut])
    assert whole.sent.startswith(halves.sent)
    halves.send(data[1:][cut:])
    assert (halves.sent, halves.contents, halves.end) == (whole.sent, whole.contents, whole.end)
    assert whole.sent.endswith(b"\r\n")
    assert b"\n" not in whole.sent.replace(b"\r\n", b"")
    for content in whole.contents:
        _assert_crlf_only(content)


def headers(data: bytes) -> None:
    """Message data: normalisation, header section, removal of a field, folding."""
    content_start(data)
    framer = Framer(LONGEST_LINE)
    framer.begin_data(len(data) + 2)
    framer.feed(data + b"\r\n.\r\n")
    content = bytes(normalize(framer.take_data()))
    _assert_crlf_only(content)
    count_hops(content)
    header = header_section(content, len(content))
    assert content.startswith(header)
    rest = without_field(content, b"return-path")
    assert b"\nreturn-path:" not in b"\n" + header_section(rest, len(rest)).lower()
    assert len(rest) <= len(content)
    for line in content.split(b"\r\n"):
        folded = fold(line).split(b"\r\n")
        assert max(map(len, folded)) <= LINE_OCTETS_MAX
        assert b"".join(folded).replace(b" ", b"") == line.replace(b" ", b"")
    helo = data[:255].decode("latin-1")
    client = Client("192.0.2.1", 25, helo, "ESMTP")
    field = received_field(client=client, hostname="mx.example.test", queue_id=QUEUE_ID, recipient=None, now=NOON)
    assert field.isascii()
    assert field.count(b"\n") == 3
    assert field.count(b"(") == 2


def replies(data: bytes) -> None:
    """Replies of servers, whole and in two packets; what is kept is bounded and has no control characters."""
    cut = data[0] if data else 0
    whole = _parse_replies(data[1:])
    assert _parse_replies(data[1:][:cut], data[1:][cut:]) == whole or whole[-1:] == ["malformed"]
    for reply in whole:
        if isinstance(reply, Reply):
            assert len(reply.text) <= TEXT_MAX
            assert not any((c < " " and c != "\n") or "\x7f" <= c <= "\x9f" for c in reply.text)
            assert not reply.enhanced or reply.enhanced[0] == str(reply.code)[0]


def frames(data: bytes) -> None:
    """Frames: as they are, and with a valid prefix before them, as of version 1 and of version 2."""
    for version in (1, 2):
        cut = min(data[0] if data else 0, len(data))
        header, content = data[1:][cut:], data[1:][:cut]
        checksum = zlib.crc32(content, zlib.crc32(header))
        prefix = struct.pack(">2sBxIII", MAGIC, version, len(header), len(content), checksum)
        for frame in (data, prefix + header + content):
            for kind in _KINDS:
                try:
                    record: Any = decode(frame, kind)
                except FrameError as error:
                    assert str(error)
                    continue
                again = encode(record)
                assert again is not None
                assert decode(again, kind) == record
    try:
        decode_response(data)
    except NotABroker as error:
        assert str(error)


def toml(data: bytes) -> None:
    """TOML files, and the directory in them: tables, or an error of one line."""
    text = data.decode("utf-8", "replace")
    try:
        parse_toml(text, "file.toml")
    except TomlError as error:
        assert str(error).startswith("file.toml: ")
        assert str(error).isprintable(), error
    try:
        snapshot = parse_directory(text, "directory.toml")
    except DirectoryUnusable as error:
        assert str(error).startswith("directory.toml: ")
    else:
        for user in snapshot.users.values():
            assert snapshot.mailbox_of(user.address) is not None


def dsn(data: bytes) -> None:
    """DSNs: lines of at most 998 octets, CRLF only, and three parts whatever the server and the sender wrote."""
    text, _, content_as_received = data.partition(b"\0")
    header = bytes(normalize(content_as_received))
    code = 500 + len(text) % 100
    reply = Reply(code, "5.1.1", text.decode("utf-8", "replace"))
    failure = FailedRecipient(Recipient(Address("bob", "far.test")), reply, text.decode("latin-1") or None)
    report = failure_dsn(message(sender="sender@far.test"), [failure], header, "mx.example.test", QUEUE_ID, NOON)
    assert isinstance(report.content, Inline)
    content = report.content.data
    _assert_crlf_only(content)
    assert max(map(len, content.split(b"\r\n"))) <= LINE_OCTETS_MAX
    assert len(content) < 2 * QUOTED_BYTES_MAX + 10 * len(text) + 10_000
    parsed = message_from_bytes(content, policy=policy.compat32)
    parts = parsed.get_payload()
    assert isinstance(parts, list)
    assert 2 <= len(parts) <= 3
    assert [part.get_content_type() for part in parts[:2]] == ["text/plain", "message/delivery-status"]


def pop3_commands(data: bytes) -> None:
    """POP3 lines, whole and octet by octet."""
    whole, single = pop3.LineReader(), pop3.LineReader()
    whole.feed(data)
    lines = []
    while (line := whole.next_line()) is not None:
        lines.append(line)
    octets = []
    for octet in data:
        single.feed(bytes((octet,)))
        while (line := single.next_line()) is not None:
            octets.append(line)
    assert octets == lines
    for line in lines:
        if isinstance(line, bytes):
            command = pop3.parse(line)
            assert not isinstance(command, pop3.Malformed) or command.reason.isascii()


def output(data: bytes) -> None:
    """What a terminal or a log collector gets, and names of files in a Maildir."""
    document = json.dumps(data.decode("utf-8", "replace"), ensure_ascii=False).encode()
    escaped = escape_json(document)
    assert json.loads(escaped) == json.loads(document)
    assert escaped.decode().isprintable()
    name = data.decode("utf-8", "replace").replace("/", "").replace("\0", "")
    assert isinstance(parse_name(name).seen, bool)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (addresses, smtp_commands, smtp_session, headers, replies, frames, toml, dsn, pop3_commands, output)
}


def _assert_crlf_only(content: bytes) -> None:
    rest = content.replace(b"\r\n", b"")
    assert b"\r" not in rest
    assert b"\n" not in rest


def _parse_replies(*packets: bytes) -> list[Reply | str]:
    parser = ReplyParser()
    parsed: list[Reply | str] = []
    try:
        for packet in packets:
            parsed += [reply.to_reply() for reply in parser.feed(packet)]
    except MalformedReply as error:
        assert str(error).isprintable()
        parsed += [reply.to_reply() for reply in error.replies]
        parsed.append("malformed")
    return parsed
