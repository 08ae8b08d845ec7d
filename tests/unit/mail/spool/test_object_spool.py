"""The object spool without a server: limits, settings and error messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store
from pydantic import SecretStr

from mail.settings import SpoolSettings
from mail.settings_section import SettingsError
from mail.spool import SpoolUnavailable
from mail.spool import object_spool as objects_module
from mail.spool.bucket_url import Bucket, parse_bucket, setting_errors
from mail.spool.group_commit import LARGE_BYTES
from mail.spool.limiter import Limiter
from mail.spool.object_spool import ObjectSpool
from mail.spool.object_store import describe_error, open_store
from tests.support.servers.listener import settle
from tests.support.servers.ports import wait_until


@pytest.fixture
async def spool() -> AsyncIterator[ObjectSpool]:
    made = ObjectSpool(MemoryStore(), "s3://memory", time_limit_seconds=1)
    yield made
    await made.close()


class PutRecorder:
    """Records concurrent writes, and can block them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.now_bytes = self.most_bytes = self.count = 0
        self.proceed = asyncio.Event()
        self.proceed.set()
        self.error: Exception | None = None
        self._put = obstore.put_async
        monkeypatch.setattr(objects_module.obstore, "put_async", self)

    async def __call__(self, store: Any, path: str, content: bytes, **options: Any) -> None:
        assert options == {"use_multipart": False}
        self.count += 1
        self.now += 1
        self.now_bytes += len(content)
        self.most, self.most_bytes = max(self.most, self.now), max(self.most_bytes, self.now_bytes)
        try:
            await settle()  # others may start meanwhile
            await self.proceed.wait()
            if self.error:
                raise self.error
            await self._put(store, path, content, **options)
        finally:
            self.now -= 1
            self.now_bytes -= len(content)


async def test_concurrent_requests_and_bytes_are_limited(spool: ObjectSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    puts = PutRecorder(monkeypatch)
    await asyncio.gather(*(spool.put(b"x" * LARGE_BYTES) for _ in range(80)))
    assert puts.most == objects_module.REQUESTS_IN_FLIGHT_MAX
    await asyncio.gather(*(spool.put(b"x" * (10 << 20)) for _ in range(10)))
    assert puts.most_bytes == 60 << 20 <= objects_module.BYTES_IN_FLIGHT_MAX


async def test_contents_that_wait_form_the_next_batch(spool: ObjectSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    puts = PutRecorder(monkeypatch)
    puts.proceed.clear()
    puts_in_progress = []
    for _ in range(50):
        puts_in_progress.append(asyncio.create_task(spool.put(b"content")))
        await settle()
    await wait_until(lambda: puts.now == objects_module.WRITERS)
    puts.proceed.set()
    locations = await asyncio.gather(*puts_in_progress)
    assert puts.count == objects_module.WRITERS + 1
    assert len({spooled.name for spooled in locations}) == 50


async def test_content_of_a_cancelled_caller_is_not_written(
    spool: ObjectSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = PutRecorder(monkeypatch)
    puts.proceed.clear()
    puts_in_progress = []
    for _ in range(objects_module.WRITERS + 3):
        puts_in_progress.append(asyncio.create_task(spool.put(b"content")))
        await settle()
    await wait_until(lambda: puts.now == objects_module.WRITERS)
    for cancelled in puts_in_progress[objects_module.WRITERS :]:
        cancelled.cancel()
    await settle()
    puts.proceed.set()
    await asyncio.gather(*puts_in_progress, return_exceptions=True)
    await spool.close()
    assert puts.count == objects_module.WRITERS


async def test_failed_batch_fails_only_its_callers(spool: ObjectSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    puts = PutRecorder(monkeypatch)
    puts.error = GenericError("Server returned non-2xx status code: 503 <Code>SlowDown</Code>")
    answers = await asyncio.gather(*(spool.put(b"content") for _ in range(5)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {
        "cannot write the spool s3://memory: the store replied 503 SlowDown: check spool.endpoint and the store's log"
    }
    puts.error = None
    assert await spool.read(await spool.put(b"later")) == b"later"


async def test_store_that_changes_content_is_refused_at_start(
    spool: ObjectSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put_async
    monkeypatch.setattr(
        objects_module.obstore, "put_async", lambda store, path, content, **options: put(store, path, content.upper())
    )
    with pytest.raises(SpoolUnavailable, match=r"^spool\.url: spool object .* has a wrong checksum"):
        await spool.start()


async def test_limiter_is_fair_and_skips_cancelled_waiters() -> None:
    limiter = Limiter(count=3, size_bytes=10)
    order: list[str] = []

    async def work(name: str, size: int, proceed: asyncio.Event) -> None:
        async with limiter.acquire(size):
            order.append(name)
            await proceed.wait()

    first, rest = asyncio.Event(), asyncio.Event()
    rest.set()
    tasks = [asyncio.create_task(work("first", 8, first))]
    await settle()
    big = asyncio.create_task(work("big", 100, rest))
    cancelled = asyncio.create_task(work("cancelled", 9, rest))
    tasks.append(asyncio.create_task(work("small", 1, rest)))
    await settle()
    assert order == ["first"]
    cancelled.cancel()
    big.cancel()
    await asyncio.wait([big, cancelled])
    await settle()
    assert order == ["first", "small"]
    first.set()
    await asyncio.gather(*tasks)
    await work("more than there is", 100, rest)
    assert order[-1] == "more than there is"


@pytest.mark.parametrize(
    ("url", "bucket"),
    [
        ("s3://mail/spool", Bucket("s3", "mail", "spool")),
        ("s3://mail", Bucket("s3", "mail", "")),
        ("gs://my.mail-1/eil_post/a.b/", Bucket("gs", "my.mail-1", "eil_post/a.b")),
        ("az://mail/", Bucket("az", "mail", "")),
    ],
)
def test_bucket_urls_are_parsed(url: str, bucket: Bucket) -> None:
    assert parse_bucket(url) == bucket
    assert str(bucket) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["s3:", "s3:mail", "s3://", "s3:///prefix", "s3://ma", "s3://key:secret@mail", "s3://mail//x", "s3://mail/../x",
     "s3://mail/a b", "s3://mail/x?region=y", "s3://mail/x#y", "s3://mail/x\n", "S3://mail", "http://mail"],
)  # fmt: skip
def test_invalid_bucket_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is expected|the prefix has"):
        parse_bucket(url)


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        ({"url": "s3://mail", "access_key": "id"}, "secret_key", "is missing"),
        ({"url": "s3://mail", "secret_key": "hush"}, "access_key", "is missing"),
        ({"url": "s3://mail", "endpoint": "store:9000"}, "endpoint", '"https://HOST"'),
        ({"url": "s3://mail", "endpoint": "https://me:hush@store"}, "endpoint", "without user and query"),
        ({"url": "s3://mail", "endpoint": "http://store:9000"}, "endpoint", "spool.allow_http = true"),
        (
            {"url": "gs://mail", "access_key": "id", "secret_key": "hush"},
            "access_key",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ({"url": "az://mail", "region": "north"}, "region", "only s3:// has regions"),
        ({"url": "s3://mail", "region": "eu central"}, "region", "the name of a region"),
    ],
)
def test_conflicting_spool_settings_are_refused(settings: dict[str, str], key: str, expected: str) -> None:
    (found, text), *_ = list(setting_errors(SpoolSettings(**settings)))  # type: ignore[arg-type]
    assert found == key
    assert expected in text
    assert "hush" not in text


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "s3://mail", "endpoint": "http://[::1]:9000/storage/v1/s3", "allow_http": True},
        {"url": "s3://mail", "endpoint": "https://store.example.test", "access_key": "id", "secret_key": "hush"},
        {"url": "gs://mail/x"},
        {"url": "file:var/spool", "access_key": "set for another occasion"},
    ],
)
def test_valid_spool_settings_are_accepted(settings: dict[str, Any]) -> None:
    assert list(setting_errors(SpoolSettings(**settings))) == []


@pytest.mark.parametrize(
    ("url", "kind"), [("s3://mail/x", S3Store), ("gs://mail/x", GCSStore), ("az://mail/x", AzureStore)]
)
def test_url_scheme_selects_the_store(url: str, kind: type) -> None:
    settings = SpoolSettings(url=url, access_key="me", secret_key=SecretStr("aHVzaA=="))
    store = open_store(parse_bucket(url), settings)
    assert isinstance(store, kind)
    assert "aHVzaA" not in repr(store)


@pytest.mark.parametrize("secret", ["hush!!", ""])
def test_invalid_credentials_name_the_keys_and_not_the_secret(secret: str) -> None:
    settings = SpoolSettings(url="az://mail", access_key="me" if secret else "", secret_key=SecretStr(secret))
    with pytest.raises(SettingsError, match=r'^spool\.url = "az://mail": .*: check spool\.access_key, spool') as caught:
        open_store(parse_bucket("az://mail"), settings)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "the store does not respond: check spool.endpoint"),
        (FileNotFoundError("status code: 404 Not Found: <Code>ContainerNotFound</Code>"), "there is no such bucket"),
        (FileNotFoundError("404: The specified bucket does not exist."), "there is no such bucket"),
        (GenericError("GET http://169.254.169.254/latest/api/token"), "there are no credentials: set spool.access_key"),
        (GenericError("status code: 403 Forbidden: <Code>AccessDenied</Code>"), "access denied (AccessDenied)"),
        (PermissionDeniedError("no"), "access denied (no reason given)"),
        (GenericError("status code: 503 Busy: <Code>SlowDown</Code>\n\nDebug"), "the store replied 503 SlowDown"),
        (GenericError("error sending request\n\nDebug source: ConnectError(\"dns error\""), "cannot be resolved"),
        (GenericError("error sending request\n\nkind: ConnectionRefused"), "connection refused: start the store"),
        (GenericError("error sending request\n\nInvalidCertificate(UnknownIssuer)"), "certificate is not trusted"),
        (GenericError("error sending request\n\nDebug source: and so on"), "error sending request: check spool."),
    ],
)  # fmt: skip
def test_store_errors_become_one_line_for_operators(error: Exception, expected: str) -> None:
    text = describe_error(error)
    assert expected in text
    assert "\n" not in text
    assert "Debug" not in text
