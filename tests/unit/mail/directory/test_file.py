"""The directory file: errors, reload and passwords."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from mail.address import Address
from mail.directory import (
    Directory,
    DirectoryUnavailable,
    DirectoryUnusable,
    Domain,
    IsAlias,
    IsMailbox,
    IsRelayed,
    IsRemote,
    IsUnknown,
    Snapshot,
    Tenant,
    User,
)
from mail.directory import passwords as passwords_module
from mail.directory.file import FileDirectory
from mail.directory.passwords import hash_password
from mail.directory.toml import parse_directory
from mail.route import RelayProtocol, ToRelay
from tests.support.docs.metrics import value
from tests.support.servers.ports import wait_until
from tests.support.servers.static_directory import StaticDirectory

_HASH = hash_password("eilpost-demo")
_OTHER_HASH = hash_password("another")

_WHOLE = f"""
delimiter = "-"
[tenants.default]
[tenants.big]
hosting = "dedicated"
messages_per_hour = 1000
storage = "10GiB"
source_addresses = ["192.0.2.1", "2001:db8::1"]
[domains."example.test"]
tenant = "big"
[domains."branch.test"]
relay = "smtp://10.0.0.1:25"
[domains."lists.test"]
relay = "lmtp://[::1]:24"
[domains."backup.test"]
relay = "mx"
[domains."Bücher.test"]
[users."Alice@Example.test"]
password = "{_HASH}"
quota = "1GiB"
[users."bob@example.test"]
[aliases]
"postmaster@example.test" = ["alice@example.test", "Alice@example.test", "x@elsewhere.invalid"]
"@example.test" = ["bob@example.test"]
"team@branch.test" = ["bob@example.test"]
"""


def _address(text: str) -> Address:
    return Address.parse(text, utf8=True)


def test_complete_directory_file_is_parsed() -> None:
    snapshot = parse_directory(_WHOLE, "d.toml")
    assert snapshot.tenants["big"] == Tenant("big", True, 1000, 10 << 30, ("192.0.2.1", "2001:db8::1"))
    assert snapshot.domains["example.test"] == Domain("example.test", "big")
    assert snapshot.domains["branch.test"] == Domain("branch.test", "default", ToRelay("10.0.0.1", 25))
    assert snapshot.domains["lists.test"].relay_to == ToRelay("::1", 24, RelayProtocol.LMTP)
    assert snapshot.domains["backup.test"] == Domain("backup.test", "default", by_mx=True)
    assert snapshot.users["alice@example.test"].quota_bytes == 1 << 30
    assert snapshot.users["bob@example.test"].password == ""
    assert snapshot.delimiter == "-"


def test_lookup_results_of_addresses() -> None:
    snapshot = parse_directory(_WHOLE, "d.toml")
    assert snapshot.lookup(_address("ALICE@example.TEST")) == IsMailbox("alice@example.test")
    assert snapshot.lookup(_address("alice-news@example.test")) == IsMailbox("alice@example.test")
    found = snapshot.lookup(_address("postmaster@example.test"))
    assert isinstance(found, IsAlias)
    assert len(found.targets) == 3  # Alice and alice may differ for the host of the target
    assert snapshot.lookup(_address("nobody@example.test")) == IsAlias((_address("bob@example.test"),))
    assert isinstance(snapshot.lookup(_address("any@branch.test")), IsRelayed)
    assert isinstance(snapshot.lookup(_address("team@branch.test")), IsAlias)
    assert snapshot.lookup(_address("nobody@bücher.test")) == IsUnknown()
    assert snapshot.lookup(_address("a@elsewhere.invalid")) == IsRemote()
    assert snapshot.tenant_of("example.test").dedicated
    assert snapshot.tenant_of("elsewhere.invalid").name == "default"


@pytest.mark.parametrize("domain", ["bücher.test", "BÜCHER.test", "xn--bcher-kva.test"])
def test_both_forms_of_an_internationalised_domain_are_equal(domain: str) -> None:
    assert parse_directory(_WHOLE, "d.toml").lookup(_address(f"a@{domain}")) == IsUnknown()


def test_empty_directory_file_has_no_users() -> None:
    assert parse_directory("", "d.toml") == Snapshot()


_D = '[domains."a.test"]\n'


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("x = ", "", "line 1, column 4: not valid TOML"),
        ("[user]", "user", "did you mean users?"),
        ("delimiter = 1", "delimiter", "one character"),
        ('delimiter = "@"', "delimiter", "one character"),
        ('users = "x"', "users", "a table is expected"),
        ('[tenants.t]\nhosting = "own"', "tenants.t.hosting", '"shared" or "dedicated"'),
        ('[tenants.shared]\nhosting = "dedicated"', "tenants.shared", "another name"),
        ("[tenants.t]\nstorage = 5", "tenants.t.storage", "a size with its unit"),
        ("[tenants.t]\nmessages_per_hour = true", "tenants.t.messages_per_hour", "whole number"),
        ('[tenants.t]\nsource_addresses = ["x"]', "tenants.t.source_addresses", "an IP address"),
        ("[tenants.t]\nstorag = 5", "tenants.t.storag", "did you mean storage?"),
        ('[domains."a b"]', 'domains."a b"', "a domain is expected"),
        (_D + 'tenant = "x"', 'domains."a.test".tenant', "there is no [tenants.x]"),
        (_D + 'relay = "10.0.0.1"', 'domains."a.test".relay', '"smtp://HOST:PORT"'),
        (_D + "relay = 1", 'domains."a.test".relay', '"smtp://HOST:PORT"'),
        (_D + '[domains."A.test"]', 'domains."A.test"', "twice"),
        ('[users."a@b.test"]', 'users."a@b.test"', 'there is no [domains."b.test"]'),
        (_D + '[users."a"]', 'users."a"', "an address is expected"),
        (_D + '[users."a@a.test"]\n[users."A@a.test"]', 'users."A@a.test"', "twice"),
        (_D + '[users."a@a.test"]\npassword = "sesame"', 'users."a@a.test".password', "an argon2 hash"),
        (_D + '[users."a@a.test"]\nquota = 5', 'users."a@a.test".quota', "a size with its unit"),
        (_D + 'relay = "mx"\n[users."a@a.test"]', 'users."a@a.test"', "is a relay domain"),
        (_D + '[aliases]\n"x@a.test" = "y@a.test"', 'aliases."x@a.test"', "a list of addresses"),
        (_D + '[aliases]\n"x@a.test" = []', 'aliases."x@a.test"', "a list of addresses"),
        (_D + '[aliases]\n"x@a.test" = ["y"]', 'aliases."x@a.test"', "'y'"),
        (_D + '[aliases]\n"x@b.test" = ["y@a.test"]', 'aliases."x@b.test"', 'there is no [domains."b.test"]'),
        (_D + '[aliases]\n"@" = ["y@a.test"]', 'aliases."@"', "a domain is expected"),
    ],
)
def test_invalid_directory_file_is_a_one_line_error(text: str, key: str, expected: str) -> None:
    with pytest.raises(DirectoryUnusable) as caught:
        parse_directory(text, "d.toml", passwords_module.is_hash)
    message = str(caught.value)
    assert message.startswith(f"d.toml: {key}")
    assert expected in message
    assert "\n" not in message
    assert "sesame" not in message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "directory.toml"
    file.write_text(_WHOLE)
    return file


@pytest.fixture
async def directory(path: Path) -> AsyncIterator[FileDirectory]:
    made = FileDirectory(path, poll_interval=timedelta(milliseconds=5))
    await made.start()
    yield made
    await made.close()


async def test_edit_in_place_and_replacement_are_detected(directory: FileDirectory, path: Path) -> None:
    old = directory.snapshot
    path.write_text(_WHOLE + '[domains."new.test"]\n')
    await wait_until(lambda: "new.test" in directory.snapshot.domains)
    assert "new.test" not in old.domains
    tmp = path.with_suffix(".tmp")
    tmp.write_text(_WHOLE + '[domains."wen.test"]\n')
    tmp.replace(path)
    await wait_until(lambda: "wen.test" in directory.snapshot.domains)


async def test_invalid_file_keeps_the_last_good_version_and_is_logged_once(path: Path) -> None:
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    good = directory.snapshot
    for bad in ("[users", '[users."x"]'):
        path.write_text(bad)
        assert [await directory.poll() for _ in range(4)] == [False, True, False, False]
        assert directory.snapshot is good
        assert value("directory_last_reload_successful") == 0
    path.unlink()
    assert [await directory.poll() for _ in range(4)] == [False, True, False, False]
    assert directory.snapshot is good
    path.write_text('[domains."other.test"]')
    assert [await directory.poll() for _ in range(2)] == [False, True]
    assert list(directory.snapshot.domains) == ["other.test"]
    assert value("directory_last_reload_successful") == 1
    await directory.close()
    await directory.close()


async def test_directory_file_must_be_a_regular_file(path: Path) -> None:
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    good = directory.snapshot
    path.unlink()
    os.mkfifo(path)
    async with asyncio.timeout(5):
        assert [await directory.poll() for _ in range(3)] == [False, True, False]
        assert directory.snapshot is good
        with pytest.raises(DirectoryUnusable, match="cannot be read: is not a regular file"):
            await FileDirectory(path).start()
    await directory.close()


async def test_directory_file_is_at_most_64_mib(path: Path) -> None:
    os.truncate(path, (64 << 20) + 1)
    with pytest.raises(DirectoryUnusable, match="cannot be read: is larger than 64 MiB"):
        await FileDirectory(path).start()


async def test_changed_kubernetes_mount_is_detected(path: Path) -> None:
    """Kubernetes: the file is a link into `..data`, which is a link that is replaced."""
    for name, text in (("one", _WHOLE), ("two", '[domains."new.test"]\n')):
        path.with_name(name).mkdir()
        path.with_name(name).joinpath("directory.toml").write_text(text)
    path.unlink()
    path.symlink_to("data/directory.toml")
    data = path.with_name("data")
    data.symlink_to("one")
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    assert "example.test" in directory.snapshot.domains
    fresh = path.with_name("data.tmp")
    fresh.symlink_to("two")
    fresh.replace(data)
    assert [await directory.poll() for _ in range(2)] == [False, True]
    assert list(directory.snapshot.domains) == ["new.test"]
    await directory.close()


@pytest.mark.parametrize("emptied", ["", "# all gone\n", "[tenants.default]\n"])
async def test_file_that_lost_all_domains_is_not_loaded(path: Path, emptied: str) -> None:
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    good = directory.snapshot
    path.write_text(emptied)
    with structlog.testing.capture_logs() as lines:
        assert [await directory.poll() for _ in range(4)] == [False, True, False, False]
    assert directory.snapshot is good
    [line] = lines
    assert (line["log_level"], line["event"]) == ("error", "directory not reloaded, last good version stays in use")
    assert "contains no domains, last good version had 5" in line["error"]
    await directory.close()


async def test_start_without_domains_is_a_warning(path: Path) -> None:
    path.write_text("# a pure relay\n")
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    with structlog.testing.capture_logs() as lines:
        await directory.start()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "no domains" in lines[0]["event"]
    path.write_text("# still one\n")
    assert [await directory.poll() for _ in range(2)] == [False, True]
    assert directory.snapshot == Snapshot()
    await directory.close()


async def test_file_is_read_only_after_two_equal_polls(path: Path) -> None:
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    for part in ("", "[tenants.default]\n", '[domains."new.test"]\n'):
        path.write_text(part)
        assert not await directory.poll()
        assert "alice@example.test" in directory.snapshot.users
    assert await directory.poll()
    assert list(directory.snapshot.domains) == ["new.test"]
    await directory.close()


async def test_first_load_must_succeed(tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnusable, match=r"nothing\.toml: there is no such file"):
        await FileDirectory(tmp_path / "nothing.toml").start()
    with pytest.raises(DirectoryUnusable, match="cannot be read"):
        await FileDirectory(tmp_path).start()
    (tmp_path / "latin.toml").write_bytes(b"# \xfc")
    with pytest.raises(DirectoryUnusable, match="UTF-8"):
        await FileDirectory(tmp_path / "latin.toml").start()


@pytest.fixture(params=["file", "static"])
async def either(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Directory]:
    if request.param == "static":
        yield StaticDirectory(parse_directory(_WHOLE, "d.toml"), {"alice@example.test": "eilpost-demo"})
        return
    made = FileDirectory(path)
    await made.start()
    yield made
    await made.close()


async def test_only_the_right_password_authenticates(either: Directory) -> None:
    user = await either.authenticate("ALICE@example.test", "eilpost-demo")
    assert user is not None
    assert user.address.key == "alice@example.test"
    assert await either.authenticate("alice@example.test", "eilpost-demo") == user
    for login, password in [
        ("alice@example.test", "wrong"),
        ("alice@example.test", ""),
        ("alice@example.test", "x" * 2000),
        ("alice@example.test", "eilpost-demo\x00"),
        ("alice@example.test", "\udc80"),
        ("bob@example.test", ""),
        ("nobody@example.test", "eilpost-demo"),
        ("not an address", "eilpost-demo"),
    ]:
        assert await either.authenticate(login, password) is None, (login, password)


async def test_verified_password_is_cached_for_a_minute(
    directory: FileDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    verify = passwords_module._verify
    monkeypatch.setattr(passwords_module, "_verify", lambda *a: (checked.append(a), verify(*a))[1])
    for _ in range(3):
        assert await directory.authenticate("alice@example.test", "eilpost-demo")
        assert not await directory.authenticate("alice@example.test", "wrong")
        assert not await directory.authenticate("nobody@example.test", "wrong")
    assert len(checked) == 1 + 3 + 3  # unknown users take as much time as known ones


async def test_changed_password_is_not_cached(directory: FileDirectory, path: Path) -> None:
    assert await directory.authenticate("alice@example.test", "eilpost-demo")
    path.write_text(_WHOLE.replace(_HASH, _OTHER_HASH))
    await wait_until(lambda: directory.snapshot.users["alice@example.test"].password == _OTHER_HASH)
    assert not await directory.authenticate("alice@example.test", "eilpost-demo")
    assert await directory.authenticate("alice@example.test", "another")


async def test_slow_or_too_many_checks_are_unavailable(
    directory: FileDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DirectoryUnavailable):
        await directory.authenticate("alice@example.test", "eilpost-demo", timeout=timedelta(0))
    monkeypatch.setattr(passwords_module, "CONCURRENT_CHECKS_MAX", 2)
    answers = await asyncio.gather(
        *(directory.authenticate("alice@example.test", f"{n}") for n in range(3)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [type(None), type(None), DirectoryUnavailable]
    assert await directory.authenticate("alice@example.test", "eilpost-demo")


def test_repr_does_not_contain_passwords() -> None:
    assert _HASH not in repr(User(_address("a@b.test"), _HASH))
