"""Object spool on a real server: batches, damage, unavailable servers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mail.message import Spooled, make_queue_id
from mail.spool import SpoolDamaged, SpoolUnavailable
from mail.spool import object_spool as objects_module
from mail.spool.group_commit import BATCH_MAX_BYTES, LARGE_BYTES
from mail.spool.object_spool import ObjectSpool
from tests.support.servers.object_store import BUCKET, SECRET_KEY, ObjectServer, object_spool
from tests.support.servers.ports import free_port

pytestmark = pytest.mark.objects


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture
async def spool(server: ObjectServer) -> AsyncIterator[ObjectSpool]:
    opened = object_spool(server)
    yield opened
    await opened.close()


async def _refusal(spool: ObjectSpool) -> str:
    """The one-line error of start."""
    with pytest.raises(SpoolUnavailable) as caught:
        await spool.start()
    text = str(caught.value)
    assert text.startswith("spool.url: cannot write the spool s3://")
    assert "\n" not in text
    assert SECRET_KEY not in text
    return text.partition(": ")[2].partition(": ")[2]


async def test_small_contents_share_an_object_and_large_ones_do_not(server: ObjectServer, spool: ObjectSpool) -> None:
    contents = [bytes([number]) * 10_000 for number in range(200)] + [b"L" * LARGE_BYTES]
    stored = await asyncio.gather(*map(spool.put, contents))
    assert len(server.files()) == 2
    assert {spooled.name.partition("@")[0] for spooled in stored} == {
        f"{path.parent.name}/{path.name}" for path in server.files()
    }
    assert await asyncio.gather(*map(spool.read, stored)) == contents


async def test_batches_are_limited_and_written_concurrently(server: ObjectServer, spool: ObjectSpool) -> None:
    stored = await asyncio.gather(*(spool.put(b"x" * (LARGE_BYTES - 1)) for _ in range(20)))
    assert len(server.files()) == 3
    assert max(path.stat().st_size for path in server.files()) <= BATCH_MAX_BYTES
    assert len(await asyncio.gather(*map(spool.read, stored))) == 20


async def test_another_process_reads_stored_content(server: ObjectServer, spool: ObjectSpool) -> None:
    spooled = await spool.put(b"content")
    other = object_spool(server)
    assert await other.read(spooled) == b"content"
    await other.close()


async def test_a_removed_object_is_damage_with_advice(server: ObjectServer, spool: ObjectSpool) -> None:
    spooled = await spool.put(b"content")
    (file,) = server.files()
    name = spooled.name.partition("@")[0]
    file.rename(server.home / "backup")
    for limit in (None, 3, 0):
        with pytest.raises(SpoolDamaged, match=rf"^spool object s3://{BUCKET}/spool/{name} is missing: restore it"):
            await spool.read(spooled, limit)
    file.parent.mkdir(parents=True, exist_ok=True)
    (server.home / "backup").rename(file)
    assert await spool.read(spooled) == b"content"


async def test_a_changed_or_truncated_object_is_damage(server: ObjectServer, spool: ObjectSpool) -> None:
    first, second = await asyncio.gather(spool.put(b"first content"), spool.put(b"second content"))
    (file,) = server.files()
    file.write_bytes(b"F" + file.read_bytes()[1:])
    with pytest.raises(SpoolDamaged, match=f"{file.name} has a wrong checksum at offset 0: restore it"):
        await spool.read(first)
    assert await spool.read(second) == b"second content"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SpoolDamaged, match=f"{file.name} has 26 bytes instead of at least 27: restore it"):
        await spool.read(second)
    assert await spool.read(second, 6) == b"second"
    file.write_bytes(b"")
    with pytest.raises(SpoolDamaged, match="has 0 bytes instead of"):
        await spool.read(second, 6)


async def test_a_missing_bucket_is_unavailable_and_not_damaged(server: ObjectServer, spool: ObjectSpool) -> None:
    spooled = await spool.put(b"content")
    server.bucket.rename(server.home / "elsewhere")
    with pytest.raises(SpoolUnavailable, match="there is no such bucket: create it, or"):
        await spool.read(spooled)
    with pytest.raises(SpoolUnavailable, match="no such bucket"):
        await spool.put(b"more")
    with pytest.raises(SpoolUnavailable, match="no such bucket"):
        await spool.sweep(datetime.now(UTC))
    (server.home / "elsewhere").rename(server.bucket)
    assert await spool.read(spooled) == b"content"


async def test_a_stopped_server_is_unavailable_at_once_until_it_is_back(
    server: ObjectServer, spool: ObjectSpool
) -> None:
    spooled = await spool.put(b"content")
    server.kill()
    began = time.monotonic()
    answers = await asyncio.gather(
        *(spool.put(b"x" * size) for size in (10, 10, LARGE_BYTES)),
        spool.read(spooled),
        spool.read(spooled, 0),
        spool.sweep(datetime.now(UTC)),
        return_exceptions=True,
    )
    assert {type(answer) for answer in answers} == {SpoolUnavailable}
    assert {str(answer).partition("spool: ")[2] for answer in answers} == {
        "connection refused: start the store, or correct spool.endpoint"
    }
    assert time.monotonic() - began < 10
    server.start()
    assert await spool.read(spooled) == b"content"
    assert await spool.read(await spool.put(b"more")) == b"more"


async def test_an_unresponsive_server_times_out_for_all_callers(server: ObjectServer) -> None:
    spool = object_spool(server, time_limit_seconds=1.0)
    spooled = await spool.put(b"content")
    with server.frozen():
        began = time.monotonic()
        waiting = [asyncio.create_task(spool.put(b"x" * 1000)) for _ in range(10)]
        await asyncio.sleep(0.3)  # behind the first pack
        waiting += [asyncio.create_task(spool.put(b"y" * 1000)) for _ in range(500)]
        reading = [asyncio.create_task(spool.read(spooled)) for _ in range(3 * objects_module.REQUESTS_IN_FLIGHT_MAX)]
        answers = await asyncio.gather(*waiting, *reading, return_exceptions=True)
        assert {type(answer) for answer in answers} == {SpoolUnavailable}
        assert str(answers[-1]).endswith("the store does not respond: check spool.endpoint and the network")
        assert time.monotonic() - began < 4
    assert await spool.read(spooled) == b"content"
    assert await spool.read(await spool.put(b"more")) == b"more"
    await spool.close()


async def test_a_start_on_an_unresponsive_server_times_out(server: ObjectServer) -> None:
    assert objects_module.TIME_LIMIT_SECONDS == 15
    with socket.create_server(("127.0.0.1", 0)) as unresponsive:
        spool = object_spool(server, time_limit_seconds=2, endpoint=f"http://127.0.0.1:{unresponsive.getsockname()[1]}")
        began = time.monotonic()
        assert (await _refusal(spool)).startswith("the store does not respond")
        assert 1.5 < time.monotonic() - began < 6


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"access_key": "somebody"}, "access denied (XAdminUserNotFound): check spool.access_key"),
        ({"secret_key": "guessed"}, "access denied (SignatureDoesNotMatch): check spool.access_key"),
        ({"url": "s3://nobody-made-it/spool"}, "there is no such bucket: create it, or correct spool.url"),
    ],
)
async def test_wrong_settings_are_reported_at_start(server: ObjectServer, over: dict[str, str], words: str) -> None:
    spool = object_spool(server, **over)
    assert (await _refusal(spool)).startswith(words)
    with pytest.raises(SpoolUnavailable):  # and never counts as lost mail
        await spool.read(Spooled("2026010100/01ARZ3NDEKTSV4RRFFQ69G5FAV@0", 3, "00" * 16))
    with pytest.raises(SpoolUnavailable):
        await spool.put(b"content")
    await spool.close()


async def test_a_closed_port_and_a_port_without_tls_are_reported(server: ObjectServer) -> None:
    nobody = object_spool(server, endpoint=f"http://127.0.0.1:{free_port()}")
    assert (await _refusal(nobody)).startswith("connection refused: start the store")
    clear = object_spool(server, endpoint=f"https://127.0.0.1:{server.port}")
    assert "check spool.endpoint" in await _refusal(clear)


async def test_a_start_leaves_no_objects(server: ObjectServer, spool: ObjectSpool) -> None:
    await spool.start()
    assert server.files() == []


async def test_a_read_only_bucket_is_reported_at_start(server: ObjectServer, spool: ObjectSpool) -> None:
    (server.bucket / "spool").write_bytes(b"an object where our prefix is")
    assert (await _refusal(spool)).startswith("the store replied 409 ObjectParentIsFile: check spool.endpoint")


async def test_a_session_token_of_the_environment_is_ignored_with_configured_keys(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
    await object_spool(server).start()


async def test_without_keys_those_of_the_environment_are_used(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = server.settings()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(settings["access_key"]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(settings["secret_key"]))
    await object_spool(server, access_key="", secret_key="").start()


def _put_old(server: ObjectServer, age: timedelta, count: int) -> datetime:
    """Store objects as if `age` had passed; returns their time."""
    then = datetime.now(UTC) - age
    folder = server.bucket / "spool" / then.strftime("%Y%m%d%H")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / make_queue_id(int(then.timestamp() * 1000), number)).write_bytes(b"old")
    return then


async def test_a_sweep_removes_whole_hours_by_the_time_in_the_names(server: ObjectServer, spool: ObjectSpool) -> None:
    spooled = await spool.put(b"new")
    _put_old(server, timedelta(days=9), 2500)
    boundary = _put_old(server, timedelta(days=7), 3)
    other_files = [server.bucket / "spool" / "notes.txt", server.bucket / "spool" / "2020010100" / "notes.txt"]
    other_files[1].parent.mkdir()
    for path in other_files:
        path.write_bytes(b"not ours")
    assert await spool.sweep(boundary - timedelta(milliseconds=2)) == 2500
    assert await spool.sweep(boundary + timedelta(milliseconds=2)) == 3
    assert all(path.exists() for path in other_files)
    assert len(server.files()) == 3
    assert await spool.read(spooled) == b"new"


async def test_spools_with_and_without_a_prefix_are_separate(server: ObjectServer) -> None:
    deep, root = (object_spool(server, url=f"s3://{BUCKET}{prefix}") for prefix in ("/eil/post", ""))
    for spool in (deep, root):
        await spool.start()
    in_deep, in_root = await deep.put(b"deep"), await root.put(b"root")
    assert len(server.files("eil/post")) == 1
    assert await root.sweep(datetime.now(UTC) + timedelta(seconds=5)) == 1
    assert await deep.read(in_deep) == b"deep"
    with pytest.raises(SpoolDamaged):
        await root.read(in_root)


async def test_a_closed_spool_raises_unavailable(spool: ObjectSpool) -> None:
    await spool.close()
    with pytest.raises(SpoolUnavailable, match="closed"):
        await spool.put(b"more")
