"""Reload of the client certificate for the brokers when its files change; a broken new one changes nothing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate
from structlog.testing import capture_logs

from mail.log import LogUnusable
from mail.log.kafka import certificates
from mail.log.kafka.certificates import Certificates
from mail.settings import LogSettings
from mail.telemetry import REGISTRY
from tests.support.builders.certificates import Authority, Mount, Pair
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.ports import wait_until

YEAR = timedelta(days=365)


@pytest.fixture
def authority() -> Authority:
    return Authority.new()


@pytest.fixture
def mount(tmp_path: Path, authority: Authority) -> Mount:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return Mount(tmp_path / "mounted")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, watch_seconds=0.02)


def settings(mount: Mount) -> LogSettings:
    ca = mount.certificate.parent.parent / "ca.pem"
    return LogSettings(tls=True, tls_ca=str(ca), tls_cert=str(mount.certificate), tls_key=str(mount.key))


def shown_expiry() -> float | None:
    return REGISTRY.get_sample_value("eilpost_certificate_expiry_timestamp_seconds", {"use": "kafka"})


def expiry_of(pair: Pair) -> float:
    return load_pem_x509_certificate(pair.certificate).not_valid_after_utc.timestamp()


@asynccontextmanager
async def watched(mount: Mount) -> AsyncIterator[Certificates]:
    loaded = Certificates(settings(mount))
    watching = asyncio.create_task(loaded.watch())
    try:
        yield loaded
    finally:
        watching.cancel()


async def presented(context: ssl.SSLContext, authority: Authority, tmp_path: Path) -> int:
    """Serial number of the certificate that a new connection presents."""
    pair = authority.issue("server", YEAR)
    path = tmp_path / "server.pem"
    path.write_bytes(pair.certificate + pair.key)
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem.decode())
    server_context.load_cert_chain(path)
    server_context.verify_mode = ssl.CERT_REQUIRED
    peer_certificate: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer_certificate.set_result(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=context)
        await reader.read()
        writer.close()
        return load_der_x509_certificate(await peer_certificate).serial_number


async def test_new_connections_present_the_new_certificate(mount: Mount, authority: Authority, tmp_path: Path) -> None:
    first, second = authority.issue("first", YEAR), authority.issue("second", timedelta(days=9))
    mount.put(first.certificate, first.key)
    async with watched(mount) as loaded:
        assert await presented(loaded.context, authority, tmp_path) == first.serial
        assert (shown_expiry(), loaded.warnings()) == (expiry_of(first), ())
        mount.put(second.certificate, second.key)
        await wait_until(lambda: shown_expiry() == expiry_of(second), what="the new certificate")
        assert await presented(loaded.context, authority, tmp_path) == second.serial
        (line,) = loaded.warnings()
        assert line.startswith("log.tls_cert: the loaded certificate expires on ")


@pytest.mark.parametrize(
    "change",
    ["no certificate", "another key", "no files", "a key with a passphrase", "expired", "a damaged version"],
)
async def test_an_unusable_new_pair_leaves_the_loaded_pair_in_use(
    mount: Mount, authority: Authority, tmp_path: Path, change: str
) -> None:
    first, second, third = (authority.issue(name, number * YEAR) for number, name in enumerate(("a", "b", "c"), 1))
    mount.put(first.certificate, first.key)
    async with watched(mount) as loaded:
        with capture_logs() as lines:
            match change:
                case "no certificate":
                    mount.put(b"-----BEGIN CERTIFICATE-----\nx\n", second.key)
                case "another key":
                    mount.put(second.certificate, third.key)
                case "a key with a passphrase":
                    mount.put(second.certificate, b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n")
                case "expired":
                    old = authority.issue("old", -timedelta(days=1))
                    mount.put(old.certificate, old.key)
                case "a damaged version":  # OpenSSL accepts it
                    der = load_pem_x509_certificate(second.certificate).public_bytes(Encoding.DER)
                    damaged = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)
                    mount.put(ssl.DER_cert_to_PEM_cert(damaged).encode(), second.key)
                case "no files":
                    (mount.certificate.parent / "..data").unlink()
            await wait_until(lambda: lines, what="a line")
            await asyncio.sleep(0.2)
        (line,) = lines  # logged once
        assert line["event"] == "certificates not reloaded, the loaded ones stay in use"
        assert "log.tls_cert" in line["error"]
        assert await presented(loaded.context, authority, tmp_path) == first.serial
        assert shown_expiry() == expiry_of(first)
        mount.put(third.certificate, third.key)
        await wait_until(lambda: shown_expiry() == expiry_of(third), what="the repaired pair")
        assert await presented(loaded.context, authority, tmp_path) == third.serial


async def test_a_pair_written_in_two_steps_is_loaded_when_complete(mount: Mount, authority: Authority) -> None:
    first, second = authority.issue("first", YEAR), authority.issue("second", timedelta(days=300))
    mount.put(first.certificate, first.key)
    loaded = Certificates(settings(mount))
    polls = 0
    state = loaded._files_state

    def count_poll() -> certificates._FilesState:
        nonlocal polls
        polls += 1
        if polls == 1:
            mount.certificate.write_bytes(second.certificate)
        elif polls == 2:
            mount.key.write_bytes(second.key)
        return state()

    loaded._files_state = count_poll  # type: ignore[method-assign]
    with capture_logs() as lines:
        watching = asyncio.create_task(loaded.watch())
        await wait_until(lambda: shown_expiry() == expiry_of(second), what="the new certificate")
        watching.cancel()
    assert [line["event"] for line in lines] == ["certificates reloaded"]


async def test_an_added_authority_is_trusted(mount: Mount, authority: Authority, tmp_path: Path) -> None:
    first = authority.issue("first", YEAR)
    mount.put(first.certificate, first.key)
    other = Authority.new()
    async with watched(mount) as loaded:
        with pytest.raises(ssl.SSLError):
            await presented(loaded.context, other, tmp_path)
        (tmp_path / "ca.pem").write_bytes(authority.pem + other.pem)
        with capture_logs() as lines:
            await wait_until(lambda: lines, what="a line")
        issued = other.issue("client", 2 * YEAR)
        mount.put(issued.certificate, issued.key)
        await wait_until(lambda: shown_expiry() == expiry_of(issued))
        assert await presented(loaded.context, other, tmp_path) == issued.serial


async def test_a_reload_is_retried_after_a_transient_error(
    mount: Mount, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files do not change again; reading them fails three times."""
    first, second = authority.issue("first", YEAR), authority.issue("second", timedelta(days=300))
    mount.put(first.certificate, first.key)
    loaded = Certificates(settings(mount))
    load, failures = loaded._load_pair, 3

    def fails(context: ssl.SSLContext) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise LogUnusable("log.tls_cert: Stale file handle")
        load(context)

    monkeypatch.setattr(loaded, "_load_pair", fails)
    mount.put(second.certificate, second.key)
    with capture_logs() as lines:
        watching = asyncio.create_task(loaded.watch())
        await wait_until(lambda: shown_expiry() == expiry_of(second), what="the new certificate")
        watching.cancel()
    assert [line["event"] for line in lines] == [
        "certificates not reloaded, the loaded ones stay in use",
        "certificates reloaded",
    ]


def test_a_missing_file_at_start_is_named_in_one_line(mount: Mount, tmp_path: Path) -> None:
    with pytest.raises(LogUnusable, match=r"log\.tls_cert, log\.tls_key: .*tls\.crt: No such file"):
        Certificates(settings(mount))
    with pytest.raises(LogUnusable, match=r"log\.tls_ca: .*nix\.pem: No such file"):
        Certificates(LogSettings(tls=True, tls_ca=str(tmp_path / "nix.pem")))


async def test_an_expired_certificate_causes_a_warning(mount: Mount, authority: Authority) -> None:
    old = authority.issue("old", timedelta(days=-1))
    mount.put(old.certificate, old.key)
    (line,) = Certificates(settings(mount)).warnings()
    assert line.startswith("log.tls_cert: the loaded certificate expired on ")
