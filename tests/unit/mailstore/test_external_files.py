"""Files of other programs: CRLF line endings, reads in parts, and files that are not regular."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import Maildir, external_files
from mailstore.maildir.external_files import ExternalFiles, virtual_size


def _with_crlf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"yy"]), max_size=30).map(b"".join),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=8),
    st.integers(1, 7),
    st.integers(1, 9),
)
def test_any_part_has_crlf_line_endings(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, parts: list[tuple[int, int]], chunk: int, step: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign"
    path.write_bytes(content)
    wire, files = _with_crlf(content), ExternalFiles()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_files, "CHUNK_BYTES", chunk)
        assert virtual_size(path) == len(wire) + 2 * (wire != b"" and not wire.endswith(b"\n"))
        assert files.read(path, 0, None) == wire
        for start, limit in parts:
            assert files.read(path, start, limit) == wire[start : start + limit]
        sequential = b"".join(files.read(path, start, step) for start in range(0, len(wire), step))
        assert sequential == wire


def test_sequential_parts_do_not_read_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1000000000.M1P1.host:2,S"
    path.write_bytes(b"a line\n" * 300_000)
    read = 0

    class Counting(io.FileIO):
        def read(self, octets: int | None = -1, /) -> bytes:
            nonlocal read
            data = super().read(octets)
            read += len(data)
            return data

    monkeypatch.setattr(external_files, "open", Counting, raising=False)
    files, start = ExternalFiles(), 0
    while part := files.read(path, start, 64 * 1024):
        start += len(part)
    assert start == 300_000 * 8
    assert read < 3 * path.stat().st_size


def test_position_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_files, "_POSITIONS_MAX", 3)
    files = ExternalFiles()
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"x\n")
        assert files.read(tmp_path / str(number), 0, 2) == b"x\r"
    assert len(files._positions) == 3
    assert files.read(tmp_path / "0", 2, 2) == b"\n"


_OWN_NAME = "1700000000.M000000_01JDXJ5Z8QABCDEFGHJKMNPQRS-1.host,S=3,W=3"


@pytest.mark.parametrize("name", [_OWN_NAME, "1700000000.x.host,W=3", "1700000000.x.host", "x"])
@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
async def test_only_regular_files_are_listed(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"root:x:0:0")
    maildir = Maildir(tmp_path, "mx.example.test")
    await maildir.append("alice@example.test", DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRT-1"), b"a\r\n")
    [own_message] = await maildir.messages("alice@example.test")
    path = tmp_path / "example.test" / "alice" / "new" / name
    _put(path, kind, tmp_path / "secret")
    assert await maildir.messages("alice@example.test") == [own_message]
    assert await maildir.used_bytes("alice@example.test") == 3


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
@pytest.mark.parametrize("name", [_OWN_NAME, "1700000000.x.host,W=3"])
async def test_file_replaced_by_something_else_is_not_read(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"root:x:0:0")
    maildir = Maildir(tmp_path, "mx.example.test")
    path = tmp_path / "example.test" / "alice" / "new" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a\r\n")
    [listed] = await maildir.messages("alice@example.test")
    path.unlink()
    _put(path, kind, tmp_path / "secret")
    with pytest.raises(MailboxUnavailable, match="is not a regular file"):
        await asyncio.wait_for(maildir.read("alice@example.test", listed.uid), 5)


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
@pytest.mark.parametrize("name", ["eilpost-lock", "eilpost-delivered", "eilpost-delivered.old"])
async def test_append_fails_when_own_files_are_not_regular(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"k x\n")
    mailbox = tmp_path / "example.test" / "alice"
    for part in ("new", "cur", "tmp"):
        (mailbox / part).mkdir(parents=True)
    _put(mailbox / name, kind, tmp_path / "secret")
    maildir = Maildir(tmp_path, "mx.example.test")
    with pytest.raises(MailboxUnavailable, match="is not a regular file"):
        await asyncio.wait_for(
            maildir.append("alice@example.test", DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRT-1"), b"a\r\n"), 5
        )
    assert (tmp_path / "secret").read_bytes() == b"k x\n"


@pytest.mark.parametrize("seconds", [-5, 1 << 62, 300_000_000_000])
async def test_file_with_impossible_mtime_is_listed(
    tmp_path: Path, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir = Maildir(tmp_path, "mx.example.test")
    path = tmp_path / "example.test" / "alice" / "new" / "x"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a\r\n")
    status = os.lstat(path)

    class Status:
        st_mtime_ns = seconds * 1_000_000_000
        st_size = status.st_size

    monkeypatch.setattr(os, "lstat", lambda _path: Status)
    [listed] = await maildir.messages("alice@example.test")
    assert listed.size_bytes == 3


def _put(path: Path, kind: str, secret: Path) -> None:
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(secret)
        case _:
            path.mkdir()
