"""Contract suite of the Spool port, and the tests of the disk spool: batches, sweeps, crashes, full disks."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from obstore.store import MemoryStore

from mail.message import Spooled
from mail.spool import Spool, SpoolDamaged, SpoolUnavailable
from mail.spool import disk as disk_module
from mail.spool.disk import DiskSpool
from mail.spool.group_commit import BATCH_MAX_BYTES, LARGE_BYTES
from mail.spool.memory import MemorySpool
from mail.spool.object_spool import ObjectSpool
from tests.support.docs.metrics import value
from tests.support.servers.object_store import ObjectServer, object_spool

_LATER = timedelta(seconds=5)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


_OBJECTS = pytest.param("objects", marks=pytest.mark.objects)


@pytest.fixture(params=["disk", "memory", "memory-objects", _OBJECTS])
async def spool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Spool]:
    opened: Spool
    match request.param:
        case "disk":
            opened = DiskSpool(tmp_path / "spool")
        case "memory":
            opened = MemorySpool()
        case "memory-objects":
            opened = ObjectSpool(MemoryStore(), "s3://memory")
        case _:
            opened = object_spool(request.getfixturevalue("server"), prefix=f"spool/{tmp_path.name}")
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def spool_path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def disk(spool_path: Path) -> AsyncIterator[DiskSpool]:
    opened = DiskSpool(spool_path)
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    "content", [b"", b"x", b"a line\r\n" * 1000, bytes(range(256)), b"L" * LARGE_BYTES, b"l" * (3 * LARGE_BYTES + 1)]
)
async def test_stored_content_is_read_back(spool: Spool, content: bytes) -> None:
    spooled = await spool.put(content)
    assert spooled.size_bytes == len(content)
    assert await spool.read(spooled) == content


async def test_every_operation_is_timed(spool: Spool) -> None:
    def counts() -> list[float]:
        return [value("spool_duration_seconds_count", operation=operation) for operation in ("write", "read", "sweep")]

    before = counts()
    stored = await spool.put(b"x" * 100)
    for _ in range(2):
        await spool.read(stored)
    await spool.sweep(datetime.now(UTC) - timedelta(days=30))
    assert [after - first for after, first in zip(counts(), before, strict=True)] == [1, 2, 1]


async def test_only_the_first_bytes_are_read(spool: Spool) -> None:
    first, second = await asyncio.gather(spool.put(b"0123456789"), spool.put(b"abc"))
    assert await spool.read(first, 4) == b"0123"
    assert await spool.read(first, 100) == b"0123456789"
    assert await spool.read(second, 100) == b"abc"
    assert await spool.read(second, 0) == b""


async def test_concurrently_stored_contents_do_not_mix(spool: Spool) -> None:
    contents = [os.urandom(1 + number * 7 % 5000) for number in range(300)] + [os.urandom(LARGE_BYTES)]
    stored = await asyncio.gather(*(spool.put(content) for content in contents))
    assert len({spooled.name for spooled in stored}) == len(contents)
    assert await asyncio.gather(*(spool.read(spooled) for spooled in stored)) == contents


async def test_equal_contents_are_stored_twice(spool: Spool) -> None:
    first, second = await spool.put(b"same"), await spool.put(b"same")
    assert first.name != second.name
    assert first.digest == second.digest


async def test_missing_content_is_damage_that_names_it(spool: Spool) -> None:
    missing = Spooled("2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV@0", 3, "00" * 16)
    for limit in (None, 1):
        with pytest.raises(SpoolDamaged, match="01ARZ3NDEKTSV4RRFFQ69G5FAV"):
            await spool.read(missing, limit)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "tmp/01ARZ3NDEKTSV4RRFFQ69G5FAV@0",
        "2026010100/../../../etc/passwd@0",
        "2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV@-1",
        "2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV@0\n",
        "2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV@0\x00",
    ],
)
@pytest.mark.parametrize("spool", ["disk", "memory-objects"], indirect=True)
async def test_no_name_leads_out_of_the_spool(spool: Spool, name: str) -> None:
    with pytest.raises(SpoolDamaged, match="not a spool name"):
        await spool.read(Spooled(name, 1, ""))


async def test_a_wrong_digest_is_damage(spool: Spool) -> None:
    spooled = await spool.put(b"content")
    with pytest.raises(SpoolDamaged):
        await spool.read(replace(spooled, digest="00" * 16))
    assert await spool.read(spooled) == b"content"


async def test_a_content_beyond_the_end_is_damage(spool: Spool) -> None:
    spooled = await spool.put(b"content")
    longer = [replace(spooled, size_bytes=8)]
    if "@" in spooled.name:  # the memory spool has no batches
        longer.append(replace(spooled, name=spooled.name.replace("@0", "@900")))
    for location in longer:
        with pytest.raises(SpoolDamaged):
            await spool.read(location)
    assert await spool.read(spooled) == b"content"


async def test_a_sweep_removes_only_older_content(spool: Spool) -> None:
    spooled = await spool.put(b"content")
    now = datetime.now(UTC)
    assert await spool.sweep(now - _LATER) == 0
    assert await spool.read(spooled) == b"content"
    assert await spool.sweep(now + _LATER) == 1
    with pytest.raises(SpoolDamaged):
        await spool.read(spooled)
    assert await spool.read(await spool.put(b"after")) == b"after"


async def test_a_cancelled_store_does_not_affect_the_others(spool: Spool) -> None:
    cancelled = asyncio.create_task(spool.put(b"cancelled"))
    other = asyncio.create_task(spool.put(b"other"))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await spool.read(await other) == b"other"


async def test_closing_waits_for_pending_stores(spool: Spool) -> None:
    storing = [asyncio.create_task(spool.put(content)) for content in (b"small", b"L" * LARGE_BYTES)]
    await asyncio.sleep(0)
    await spool.close()
    assert {(await stored).size_bytes for stored in storing} == {5, LARGE_BYTES}
    await spool.close()


# Only the disk spool.


def _files(spool_path: Path) -> list[Path]:
    return sorted(path for path in spool_path.rglob("*") if path.is_file())


async def test_concurrently_stored_contents_share_a_file_and_its_flush(
    disk: DiskSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk.put(b"the hour's directory is there")
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(disk_module.os, "fsync", lambda number: (flushed.append(number), fsync(number)))
    stored = await asyncio.gather(*(disk.put(b"x" * 10_000) for _ in range(500)))
    assert len({spooled.name.partition("@")[0] for spooled in stored}) == 1
    assert len(flushed) == 2  # the file and its directory


async def test_the_size_of_a_batch_is_limited(disk: DiskSpool, spool_path: Path) -> None:
    stored = await asyncio.gather(*(disk.put(b"x" * (LARGE_BYTES - 1)) for _ in range(20)))
    assert max(file.stat().st_size for file in _files(spool_path)) <= BATCH_MAX_BYTES
    assert len(await asyncio.gather(*map(disk.read, stored))) == 20


async def test_the_next_process_reads_stored_content(disk: DiskSpool, spool_path: Path) -> None:
    spooled = await disk.put(b"content")
    other = DiskSpool(spool_path)
    assert await other.read(spooled) == b"content"
    await other.close()


async def test_flipped_bits_and_truncation_are_damage_that_names_the_file(disk: DiskSpool, spool_path: Path) -> None:
    first, second = await asyncio.gather(disk.put(b"first content"), disk.put(b"second content"))
    (file,) = _files(spool_path)
    damaged = bytearray(file.read_bytes())
    damaged[3] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(SpoolDamaged, match=f"{file.name} has a wrong checksum at offset 0: restore it"):
        await disk.read(first)
    assert await disk.read(second) == b"second content"
    file.write_bytes(damaged[:-1])
    with pytest.raises(SpoolDamaged, match=f"{file.name} ends after 13 of 14 bytes"):
        await disk.read(second)
    assert await disk.read(second, 6) == b"second"


async def test_a_missing_spool_is_unavailable_and_not_damaged(
    disk: DiskSpool, spool_path: Path, tmp_path: Path
) -> None:
    spooled = await disk.put(b"content")
    spool_path.rename(tmp_path / "unmounted")
    with pytest.raises(SpoolUnavailable):
        await disk.read(spooled)
    disk._device += 1  # as if another volume were mounted
    for call in (disk.put(b"more"), disk.free_bytes()):
        with pytest.raises(SpoolUnavailable, match="the volume is not mounted any more"):
            await call
    assert not spool_path.exists()
    (tmp_path / "unmounted").rename(spool_path)
    assert await disk.read(spooled) == b"content"
    assert await disk.read(await disk.put(b"more")) == b"more"


@pytest.mark.parametrize("size", [10, LARGE_BYTES])
@pytest.mark.parametrize("removed", ["all", "tmp"])
async def test_a_removed_directory_is_created_again(disk: DiskSpool, spool_path: Path, size: int, removed: str) -> None:
    lost = await disk.put(b"content")
    shutil.rmtree(spool_path if removed == "all" else spool_path / "tmp")
    stored = await disk.put(b"x" * size)
    assert await disk.read(stored) == b"x" * size
    shutil.rmtree(spool_path)
    assert await disk.free_bytes()
    with pytest.raises(SpoolDamaged, match="is missing"):
        await disk.read(lost)


@pytest.mark.parametrize("size", [10, LARGE_BYTES])
async def test_a_full_disk_fails_all_waiting_stores_and_leaves_no_files(
    disk: DiskSpool, spool_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(disk_module.os, "write", full)
        answers = await asyncio.gather(*(disk.put(b"x" * size) for _ in range(5)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {SpoolUnavailable}
        assert "No space left" in str(answers[0])
        with pytest.raises(SpoolUnavailable):  # whatever free space the file system reports
            await disk.free_bytes()
    assert await disk.free_bytes()
    assert _files(spool_path) == []
    assert await disk.read(await disk.put(b"later")) == b"later"


async def test_a_failed_flush_does_not_count_as_durable(disk: DiskSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk_module.os, "fsync", broken)
    with pytest.raises(SpoolUnavailable):
        await disk.put(b"content")


async def test_partial_writes_are_completed(disk: DiskSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(disk_module.os, "write", lambda number, data: write(number, data[:1000]))
    content = os.urandom(10_001)
    assert await disk.read(await disk.put(content)) == content


async def test_a_sweep_removes_whole_hours_and_files_of_crashes(disk: DiskSpool, spool_path: Path) -> None:
    spooled = await disk.put(b"new")
    now = datetime.now(UTC)
    old_hour = spool_path / "2020010100"
    old_hour.mkdir()
    long_ago = (now - timedelta(days=8)).timestamp()
    unfinished, fresh = spool_path / "tmp" / "unfinished", spool_path / "tmp" / "fresh"
    for file in (old_hour / "a", old_hour / "b", unfinished):
        file.write_bytes(b"")
        os.utime(file, (long_ago, long_ago))
    fresh.write_bytes(b"")
    unrelated = spool_path / "lost+found"
    unrelated.mkdir()
    assert await disk.sweep(now - timedelta(days=7)) == 3
    assert not old_hour.exists()
    assert not unfinished.exists()
    assert fresh.exists()
    assert unrelated.exists()
    assert await disk.read(spooled) == b"new"


async def test_a_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolUnavailable, match=r"cannot open the spool at .*file"):
        DiskSpool(tmp_path / "file" / "spool")


async def test_closing_waits_for_pending_writes(tmp_path: Path) -> None:
    opened = DiskSpool(tmp_path / "spool")
    storing = asyncio.create_task(opened.put(b"content"))
    await asyncio.sleep(0)
    await opened.close()
    spooled = await storing
    again = DiskSpool(tmp_path / "spool")
    assert await again.read(spooled) == b"content"
    await again.close()
    await again.close()
    with pytest.raises(SpoolUnavailable, match="closed"):
        await again.put(b"more")


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
async def test_a_path_that_is_no_regular_file_is_damage_and_is_swept(
    disk: DiskSpool, tmp_path: Path, kind: str
) -> None:
    spooled = await disk.put(b"content")
    path = tmp_path / "spool" / spooled.name.partition("@")[0]
    os.rename(path, tmp_path / "elsewhere")
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.mkdir()
    with pytest.raises(SpoolDamaged, match="is not a regular file"):
        await asyncio.wait_for(disk.read(spooled), 5)
    assert await disk.sweep(datetime.now(UTC) + _LATER) == (kind != "directory")
    assert (tmp_path / "elsewhere").read_bytes() == b"content"
