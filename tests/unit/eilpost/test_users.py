"""`eilpost user` edits the directory file as text and changes nothing else in it."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from eilpost import directory_editor, users
from mail.directory import DirectoryUnusable
from mail.settings_section import SettingsError

FILE = """\
# our house
[tenants.default]

[domains."example.test"]  # the one domain
[domains."far.test"]
relay = "mx"

[users."alice@example.test"]
# a comment of alice's
quota = "1GiB"
password = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBzYWx0IG9mIG91cnM$5q0dOwM8s2jgc0kXnxkpJ6FfLSWfE5fJMhhSVpyFh4E" # old

[users."bob@example.test"]

# who else
[aliases]
"postmaster@example.test" = [
  "alice@example.test",
]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "directory.toml"
    path.write_text(FILE)
    path.chmod(0o640)
    return path


def _verified(file: Path, user: str, password: str) -> bool:
    return PasswordHasher().verify(tomllib.loads(file.read_text())["users"][user]["password"], password)


def test_a_new_user_is_inserted_after_the_last_one_and_comments_stay(file: Path) -> None:
    assert users.add(file, "Carol@Example.TEST", 'p"w', "2GiB") == "Carol@example.test"
    text = file.read_text()
    assert _verified(file, "Carol@example.test", 'p"w')
    start, end = text.index('[users."Carol'), text.index("# who else")
    assert text[:start] + text[end:] == FILE
    assert text[start:end].endswith('quota = "2GiB"\n\n')
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("text", ["", "# nothing yet\n", FILE.split("[users")[0]])
def test_the_first_user_of_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "directory.toml"
    file.write_text(text or '[domains."example.test"]\n')
    if "example.test" not in file.read_text():
        with pytest.raises(directory_editor.EditRefused, match="eilpost domain add example"):
            users.add(file, "a@example.test", "x")
        return
    users.add(file, "a@example.test", "x")
    assert _verified(file, "a@example.test", "x")


def test_a_new_password_replaces_the_line_and_nothing_else(file: Path) -> None:
    assert users.change_password(file, "ALICE@example.test", "new") == "alice@example.test"
    assert _verified(file, "alice@example.test", "new")
    changed = [new for old, new in zip(FILE.splitlines(), file.read_text().splitlines(), strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0].endswith("# old")


def test_a_user_without_a_password_gets_a_password(file: Path) -> None:
    users.change_password(file, "bob@example.test", "new")
    assert _verified(file, "bob@example.test", "new")


def test_no_comment_of_the_example_is_wrong_once_there_is_a_password(tmp_path: Path) -> None:
    file = tmp_path / "directory.toml"
    file.write_text((Path(__file__).resolve().parents[3] / "directory.example.toml").read_text())
    users.change_password(file, "alice@example.test", "new")
    assert "no password" not in file.read_text()


def test_a_refused_change_leaves_the_file_unchanged(file: Path) -> None:
    with pytest.raises(directory_editor.EditRefused, match="exists already"):
        users.add(file, "alice@EXAMPLE.test", "x")
    with pytest.raises(directory_editor.EditRefused, match="there is no domain"):
        users.add(file, "a@other.test", "x")
    with pytest.raises(SettingsError, match="relay domain"):
        users.add(file, "a@far.test", "x")
    with pytest.raises(SettingsError, match="not an address"):
        users.add(file, "alice", "x")
    with pytest.raises(directory_editor.EditRefused, match=r"no user nobody@example\.test"):
        users.change_password(file, "nobody@example.test", "x")
    assert file.read_text() == FILE


def test_an_unusual_layout_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "directory.toml"
    text = 'users."a@example.test".password = ""\n[domains."example.test"]\n'
    file.write_text(text)
    with pytest.raises(SettingsError, match="by hand"):
        users.change_password(file, "a@example.test", "x")
    assert file.read_text() == text


def test_an_error_of_a_broken_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "directory.toml"
    with pytest.raises(DirectoryUnusable, match=r"directory\.toml: there is no such file \(directory\.url names it\)"):
        users.list_users(file)
    file.write_text("[users\n")
    with pytest.raises(DirectoryUnusable, match="not valid TOML"):
        users.list_users(file)
    file.write_text('[domains."example.test"]\nrelai = "mx"\n')
    with pytest.raises(DirectoryUnusable, match="relai"):
        users.add(file, "a@example.test", "x")
    for text in ("users = 3", '[users]\n"a@example.test" = 1', "[users]\na = {}", '[aliases]\n"a@example.test" = 7'):
        file.write_text(text + '\n[domains."example.test"]\n')
        with pytest.raises(DirectoryUnusable, match=r"directory\.toml"):
            users.list_users(file)
        with pytest.raises(DirectoryUnusable, match=r"directory\.toml"):
            users.change_password(file, "a@example.test", "x")


def test_the_list_has_log_in_quota_and_aliases(file: Path) -> None:
    alice, bob = users.list_users(file)
    assert alice == users.UserListing("alice@example.test", True, "1GiB", ("postmaster@example.test",))
    assert not bob.can_log_in


@pytest.mark.parametrize("address", ['"odd \\" one"@example.test', "ünï@bücher.test", "a@BÜCHER.test"])
def test_unusual_addresses_are_added_once_and_found_again(tmp_path: Path, address: str) -> None:
    file = tmp_path / "directory.toml"
    file.write_text('[domains."example.test"]\n[domains."xn--bcher-kva.test"]\n')
    name = users.add(file, address, "x")
    with pytest.raises(directory_editor.EditRefused):
        users.add(file, address, "x")
    assert users.change_password(file, address, "new") == name
    assert _verified(file, name, "new")


def test_concurrent_editors_lose_no_change(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    read = directory_editor.read

    def read_late(path: Path) -> Any:
        directory = read(path)
        with suppress(threading.BrokenBarrierError):  # the lock keeps the other thread from here
            together.wait(0.2)
        return directory

    monkeypatch.setattr(directory_editor, "read", read_late)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: users.add(file, f"{name}@example.test", "x"), ("carol", "dave")))
    assert {user.address for user in users.list_users(file)} >= {"carol@example.test", "dave@example.test"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_lock_that_is_never_released_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_editor, "_LOCK_SECONDS", 0.05)
    folder = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(SettingsError, match=r"directory\.toml: another program is editing it"):
            users.change_password(file, "bob@example.test", "new")
    finally:
        os.close(folder)
    assert file.read_text() == FILE


def test_the_owner_and_group_of_the_file_stay(file: Path) -> None:
    """As root edits a file that the server reads by its group."""
    ids = (4321, 8765) if os.getuid() == 0 else (os.getuid(), os.getgroups()[-1])
    os.chown(file, *ids)
    users.add(file, "carol@example.test", "x")
    assert _verified(file, "carol@example.test", "x")
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*ids, 0o640)


def test_a_file_whose_owner_cannot_be_kept_is_left_unchanged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _uid: int, _gid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(SettingsError, match=r"cannot keep its owner and group \(\d+:\d+\); run the command as root"):
        users.add(file, "carol@example.test", "x")
    assert file.read_text() == FILE
    assert list(file.parent.iterdir()) == [file]


def test_the_folder_is_flushed_after_the_rename(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_folder, "carol@" in file.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    users.add(file, "carol@example.test", "x")
    assert flushed == [(False, False), (True, True)]


@pytest.mark.parametrize(
    ("aliases", "diverted"),
    [
        ('"Carol@example.test" = ["bob@example.test"]', True),
        ('"carol@example.test" = ["carol@example.test", "bob@example.test"]', False),
        ('"@example.test" = ["bob@example.test"]', False),
        ("", False),
    ],
)
def test_a_user_whose_address_is_an_alias_of_others_gets_no_mail(tmp_path: Path, aliases: str, diverted: bool) -> None:
    file = tmp_path / "directory.toml"
    file.write_text(f'[domains."example.test"]\n[users."bob@example.test"]\n[aliases]\n{aliases}\n')
    read = directory_editor.read(file)
    assert users.is_alias_elsewhere(read, users.check_new(read, "carol@example.test")) is diverted
    users.add(file, "carol@example.test", "x")
    assert users.is_mailbox_diverted(directory_editor.read(file), "carol@example.test") is diverted
    assert not users.is_mailbox_diverted(directory_editor.read(file), "@example.test")


def test_a_removed_user_leaves_comments_and_the_other_tables(file: Path) -> None:
    assert users.remove(file, "BOB@example.test") == "bob@example.test"
    assert file.read_text() == FILE.replace('[users."bob@example.test"]\n\n', "")
    with pytest.raises(directory_editor.EditRefused):
        users.remove(file, "bob@example.test")


def test_last_user_can_be_removed(file: Path) -> None:
    file.write_text('[domains."example.test"]\n\n[users."alice@example.test"]\n')
    users.remove(file, "alice@example.test")
    assert file.read_text() == '[domains."example.test"]\n'
    users.add(file, "alice@example.test", "x")
    assert [user.address for user in users.list_users(file)] == ["alice@example.test"]


def test_the_target_of_an_alias_is_not_removed(file: Path) -> None:
    with pytest.raises(directory_editor.EditRefused, match=r"alice@example\.test is a target of the alias postmaster@"):
        users.remove(file, "alice@example.test")
    assert file.read_text() == FILE


def test_a_removed_user_can_be_added_again(file: Path) -> None:
    users.remove(file, "bob@example.test")
    users.add(file, "bob@example.test", "x")
    assert [user.address for user in users.list_users(file)] == ["alice@example.test", "bob@example.test"]
