"""Maildir: what is on the disk, and exactly one message whatever step a crash or a full disk hits."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mail.message import DeliveryId
from mailstore import box as box_module
from mailstore import delivered as delivered_module
from mailstore import flush as flush_module
from mailstore import listing as listing_module
from mailstore import maildir as maildir_module
from mailstore import reading as reading_module
from mailstore.mailboxes import MailboxFull, MailboxUnavailable
from mailstore.maildir import Maildir

OWNER = "alice@example.test"
ID = DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRS-0")
OTHER = DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRT-0")
CONTENT = b"Subject: hello\r\n\r\nworld\r\n"


def a_maildir(tmp_path: Path, **more: Any) -> Maildir:
    return Maildir(tmp_path / "mail", "mx.example.test", **more)


def box(tmp_path: Path) -> Path:
    return tmp_path / "mail" / "example.test" / "alice"


def files(tmp_path: Path, *folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((box(tmp_path) / folder).glob("*"))]


def move_to_cur(tmp_path: Path) -> None:
    """What Dovecot does when its owner opens the mailbox."""
    for file in files(tmp_path, "new"):
        file.rename(box(tmp_path) / "cur" / f"{file.name}:2,FR")


async def test_the_layout_is_a_maildir_for_its_user_alone(tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    await a_maildir(tmp_path).keep(OWNER, ID, CONTENT)
    (file,) = files(tmp_path, "new", "cur", "tmp")
    assert file.parent.name == "new"
    assert file.read_bytes() == CONTENT
    assert f"_{ID}." in file.name
    assert file.name.endswith(f".mx.example.test,S={len(CONTENT)},W={len(CONTENT)}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_nlink == 1
    for folder in (box(tmp_path), *(box(tmp_path) / name for name in ("tmp", "new", "cur"))):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_bare_line_feeds_count_twice_in_w(tmp_path: Path) -> None:
    await a_maildir(tmp_path).keep(OWNER, ID, b"a\nb\r\nc\n")
    (file,) = files(tmp_path, "new")
    assert file.name.endswith(",S=7,W=9")


# Crashes and errors at every step


class Crash(BaseException):
    """The process is gone at this instant: no handler of ours sees it."""


class Saboteur:
    """Stands in for `os`: counts the calls that change the disk, and breaks one of them."""

    STEPS = frozenset({"open", "write", "fsync", "link", "unlink", "pwrite", "ftruncate", "replace"})

    def __init__(self, step: int = -1, *, after: bool = False, error: BaseException | None = None) -> None:
        self.step = step
        self.after = after
        self.error = error or Crash()
        self.taken: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.STEPS:
            return real

        def wrapped(*arguments: Any, **more: Any) -> Any:
            here = len(self.taken) == self.step
            self.taken.append(name)
            if here and not self.after:
                raise self.error
            try:
                return real(*arguments, **more)
            finally:
                if here:
                    raise self.error

        return wrapped


def break_os(patch: pytest.MonkeyPatch, saboteur: Saboteur) -> None:
    for module in (maildir_module, box_module, delivered_module, flush_module, listing_module):
        patch.setattr(module, "os", saboteur)


@contextmanager
def sabotage(saboteur: Saboteur) -> Iterator[Saboteur]:
    with pytest.MonkeyPatch.context() as patch:
        break_os(patch, saboteur)
        yield saboteur


def count_steps(tmp_path: Path) -> list[str]:
    with sabotage(Saboteur()) as saboteur:
        a_maildir(tmp_path).keep_now(OWNER, ID, CONTENT, 10_000)
    shutil.rmtree(tmp_path / "mail")
    return saboteur.taken


def test_a_message_costs_two_flushes(tmp_path: Path) -> None:
    maildir = a_maildir(tmp_path)
    maildir.keep_now(OWNER, OTHER, b"other", None)
    with sabotage(Saboteur()) as saboteur:
        maildir.keep_now(OWNER, ID, CONTENT, None)
    assert saboteur.taken.count("fsync") == 2
    assert saboteur.taken.index("fsync") < saboteur.taken.index("link")


def nothing(_tmp_path: Path) -> None:
    """The owner does nothing between crash and second try."""


def lose_the_journal(tmp_path: Path) -> None:
    """What a power cut may do to pages that were never flushed."""
    (box(tmp_path) / "eilpost-delivered").unlink(missing_ok=True)


def lose_the_journal_and_move(tmp_path: Path) -> None:
    lose_the_journal(tmp_path)
    move_to_cur(tmp_path)


def tear_the_journal(tmp_path: Path) -> None:
    journal = box(tmp_path) / "eilpost-delivered"
    if journal.exists():
        journal.write_bytes(journal.read_bytes()[:-3])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("meanwhile", "reboot"),
    [
        (nothing, False),
        (move_to_cur, False),
        (nothing, True),
        (move_to_cur, True),
        (lose_the_journal, True),
        (lose_the_journal_and_move, True),
        (tear_the_journal, True),
    ],
)
@pytest.mark.parametrize("warm", [False, True], ids=["first-message", "later-message"])
def test_a_crash_at_any_step_and_a_second_keep_make_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    meanwhile: Callable[[Path], None],
    reboot: bool,
    warm: bool,
) -> None:
    steps = count_steps(tmp_path)
    assert "link" in steps
    linked = 0
    for step in range(len(steps)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(box_module, "boot_id", lambda: "boot-1")
            if warm:
                a_maildir(tmp_path).keep_now(OWNER, OTHER, b"other", None)
            break_os(patch, Saboteur(step, after=after))
            try:
                a_maildir(tmp_path).keep_now(OWNER, ID, CONTENT, 10_000)
            except Crash:
                pass
            else:
                assert warm  # fewer steps than for a first message
                continue
        linked += any(ID in file.name for file in files(tmp_path, "new"))
        meanwhile(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(box_module, "boot_id", lambda: "boot-2" if reboot else "boot-1")
            again = a_maildir(tmp_path)
            again.keep_now(OWNER, ID, CONTENT, 10_000)
            assert again.keep_now(OWNER, ID, CONTENT, 10_000) is False
        kept = [file for file in files(tmp_path, "new", "cur") if ID in file.name]
        assert [file.read_bytes() for file in kept] == [CONTENT], (step, steps[step])
        assert files(tmp_path, "tmp") == [], (step, steps[step])
        shutil.rmtree(tmp_path / "mail")
    assert linked >= 3  # the crash really came after the link in some of them


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_full_disk_at_any_step_leaves_no_debris_and_a_second_try_makes_one_message(
    tmp_path: Path, code: int, after: bool
) -> None:
    steps = count_steps(tmp_path)
    seen: set[str] = set()
    for step, name in enumerate(steps):
        if after and name == "open":
            continue  # an open that fails has opened nothing
        error = OSError(code, os.strerror(code), "somewhere")
        maildir = a_maildir(tmp_path)
        try:
            with sabotage(Saboteur(step, after=after, error=error)):
                await maildir.keep(OWNER, ID, CONTENT, 10_000)
        except MailboxUnavailable as unavailable:
            seen.add(str(unavailable).partition(": ")[2])
            if name != "unlink" and box(tmp_path).exists():
                assert files(tmp_path, "tmp") == [], (step, name)
        else:
            assert len(files(tmp_path, "new")) == 1
        await maildir.keep(OWNER, ID, CONTENT, 10_000)
        assert len(files(tmp_path, "new")) == 1, (step, name)
        move_to_cur(tmp_path)
        assert await a_maildir(tmp_path).keep(OWNER, ID, CONTENT) is False
        assert len(files(tmp_path, "new", "cur")) == 1, (step, name)
        shutil.rmtree(tmp_path / "mail")
    assert seen == {os.strerror(code)}


async def test_a_read_only_root_is_an_unavailable_mailbox(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("a file where the directory should be")
    with pytest.raises(MailboxUnavailable, match="mail"):
        await a_maildir(tmp_path).keep(OWNER, ID, CONTENT)


# Other programs at the same mailbox


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_id_is_known_after_dovecot_moved_flagged_or_removed_the_message(
    tmp_path: Path, restarted: bool
) -> None:
    first = a_maildir(tmp_path)
    await first.keep(OWNER, ID, CONTENT)
    move_to_cur(tmp_path)
    second = a_maildir(tmp_path) if restarted else first
    assert await second.keep(OWNER, ID, CONTENT) is False
    files(tmp_path, "cur")[0].unlink()
    third = a_maildir(tmp_path) if restarted else first
    assert await third.keep(OWNER, ID, CONTENT) is False
    assert await third.messages(OWNER) == []


async def test_an_id_is_known_after_a_power_cut_when_its_message_lies_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_maildir(tmp_path).keep(OWNER, ID, CONTENT)
    archive = box(tmp_path) / ".Archive" / "cur"
    archive.mkdir(parents=True)
    (file,) = files(tmp_path, "new")
    file.rename(archive / f"{file.name}:2,S")
    lose_the_journal(tmp_path)
    monkeypatch.setattr(box_module, "boot_id", lambda: "boot-2")
    again = a_maildir(tmp_path)
    assert await again.keep(OWNER, ID, CONTENT) is False
    assert await again.used_bytes(OWNER) == len(CONTENT)


async def test_a_name_lost_in_a_power_cut_is_delivered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal says kept, but neither the directory nor an expunge of ours does: rather twice than never."""
    await a_maildir(tmp_path).keep(OWNER, ID, CONTENT)
    files(tmp_path, "new")[0].unlink()
    monkeypatch.setattr(box_module, "boot_id", lambda: "boot-2")
    assert await a_maildir(tmp_path).keep(OWNER, ID, CONTENT) is True
    assert await a_maildir(tmp_path).keep(OWNER, ID, CONTENT) is False


async def test_an_expunged_id_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_maildir(tmp_path)
    await first.keep(OWNER, ID, CONTENT)
    await first.expunge(OWNER, [ID])
    monkeypatch.setattr(box_module, "boot_id", lambda: "boot-2")
    assert await a_maildir(tmp_path).keep(OWNER, ID, CONTENT) is False


async def test_files_of_others_are_served_with_crlf(tmp_path: Path) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, ID, CONTENT)
    foreign = box(tmp_path) / "cur" / "1000000000.M1P1.host:2,S"
    foreign.write_bytes(b"Subject: x\n\nbody\n")
    (box(tmp_path) / "cur" / ".hidden").write_bytes(b"x")
    first, _second = await maildir.messages(OWNER)
    assert (first.uid, first.seen) == ("1000000000.M1P1.host", True)
    wire = b"Subject: x\r\n\r\nbody\r\n"
    assert first.size_bytes == len(wire)
    assert await maildir.read(OWNER, first.uid) == wire
    assert await maildir.read(OWNER, first.uid, 10, 4) == wire[10:14]


async def test_a_name_of_no_possible_time_does_not_close_the_mailbox(tmp_path: Path) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, ID, CONTENT)
    for seconds in ("9" * 11, "9" * 15, "9" * 40):
        (box(tmp_path) / "cur" / f"{seconds}.M000000_{seconds}.host,S=3,W=3:2,").write_bytes(b"x\r\n")
    kept = await maildir.messages(OWNER)
    assert len(kept) == 4
    assert [await maildir.read(OWNER, each.uid) for each in kept].count(b"x\r\n") == 3


async def test_reading_and_removing_follow_a_message_that_moves(tmp_path: Path) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, ID, CONTENT)
    await maildir.messages(OWNER)
    move_to_cur(tmp_path)
    assert await maildir.read(OWNER, ID) == CONTENT
    await maildir.mark_seen(OWNER, [ID])
    (file,) = files(tmp_path, "cur")
    assert file.name.endswith(":2,FRS")
    assert await maildir.read(OWNER, ID) == CONTENT
    await maildir.expunge(OWNER, [ID])
    assert files(tmp_path, "new", "cur") == []


async def test_another_program_filled_the_mailbox(tmp_path: Path) -> None:
    """A message is never refused on an old sum, and never taken for long on one."""
    now = [1_700_000_000.0]
    maildir = a_maildir(tmp_path, clock=lambda: now[0])
    await maildir.keep(OWNER, ID, b"x" * 90, 100)
    files(tmp_path, "new")[0].unlink()
    assert await maildir.keep(OWNER, OTHER, b"x" * 90, 100) is True
    (box(tmp_path) / "cur" / "1000000000.M1P1.host,S=50,W=50:2,").write_bytes(b"y" * 50)
    now[0] += 120
    with pytest.raises(MailboxFull):
        await maildir.keep(OWNER, DeliveryId("C-0"), b"x" * 5, 100)


# Time


async def test_ids_are_remembered_long_enough_and_not_for_ever(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    day = 86_400
    maildir = a_maildir(tmp_path, remember=timedelta(days=14), clock=lambda: now[0])

    async def pass_days(days: int) -> None:
        for number in range(days):
            now[0] += day
            await maildir.keep(OWNER, DeliveryId(f"D{now[0]:.0f}-{number}"), b"x")

    await maildir.keep(OWNER, ID, CONTENT)
    await maildir.expunge(OWNER, [ID])
    await pass_days(13)
    assert await maildir.keep(OWNER, ID, CONTENT) is False
    await pass_days(20)
    journals = sorted(box(tmp_path).glob("eilpost-delivered*"))
    assert len(journals) == 2
    assert sum(journal.stat().st_size for journal in journals) < 33 * 40
    assert not any(ID.encode() in journal.read_bytes() for journal in journals)


async def test_old_debris_is_swept_and_what_had_been_linked_is_remembered(tmp_path: Path) -> None:
    await a_maildir(tmp_path).keep(OWNER, ID, CONTENT)
    linked = box(tmp_path) / "tmp" / f"1.M000001_{OTHER}.mx,S=1,W=1.9-ab.1"
    fresh = box(tmp_path) / "tmp" / "1.M000001_FRESH-0.mx,S=1,W=1.9-ab.2"
    old = box(tmp_path) / "tmp" / "whatever"
    for file in (linked, fresh, old):
        file.write_bytes(b"x")
    os.link(linked, box(tmp_path) / "new" / "1.M000001_x.mx,S=1,W=1")
    for file in (linked, old):
        os.utime(file, (time.time() - 40 * 3600,) * 2)
    again = a_maildir(tmp_path)
    await again.keep(OWNER, DeliveryId("Z-0"), b"z")
    assert files(tmp_path, "tmp") == [fresh]
    assert await again.keep(OWNER, OTHER, b"x") is False


# Several processes


def test_two_processes_deliver_the_same_ids_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mailstore.maildir import Maildir\n"
        "maildir = Maildir(Path(sys.argv[1]), 'mx')\n"
        "print(sum(maildir.keep_now('alice@example.test', f'ID{n}-0', b'x', None) for n in range(60)))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "mail")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in started]
    assert sum(counts) == 60
    assert len(files(tmp_path, "new")) == 60
    assert files(tmp_path, "tmp") == []


async def test_a_lock_that_is_never_given_back_is_an_unavailable_mailbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, OTHER, CONTENT)
    monkeypatch.setattr("mailstore.turns.LOCK_SECONDS", 0.05)
    holder = os.open(box(tmp_path) / "eilpost-lock", os.O_WRONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(MailboxUnavailable, match="lock"):
        await maildir.keep(OWNER, ID, CONTENT)
    assert files(tmp_path, "tmp") == []
    os.close(holder)
    assert await maildir.keep(OWNER, ID, CONTENT) is True


async def test_no_listing_for_a_delivery_into_a_mailbox_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, ID, CONTENT, 10_000)
    monkeypatch.setattr(maildir_module, "list_files", lambda *_a, **_m: pytest.fail("the mailbox was listed"))
    assert await maildir.keep(OWNER, OTHER, CONTENT, 10_000) is True
    assert await maildir.keep(OWNER, ID, CONTENT, 10_000) is False


async def test_forgetting_what_is_known_of_mailboxes_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_module, "BOXES_MAX", 2)
    monkeypatch.setattr(reading_module, "PLACES_MAX", 1)
    maildir = a_maildir(tmp_path)
    owners = [f"user{n}@example.test" for n in range(5)]
    for owner in owners:
        assert await maildir.keep(owner, ID, owner.encode()) is True
    for owner in owners:
        assert len(await maildir.messages(owner)) == 1
        assert await maildir.keep(owner, ID, b"again") is False
    for owner in owners:
        assert await maildir.read(owner, ID) == owner.encode()
    assert len(maildir._boxes) == 2


async def test_what_is_known_of_mailboxes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "IDS_MAX", 20)
    monkeypatch.setattr(box_module, "CHECK_EVERY", 1)
    maildir = a_maildir(tmp_path)
    for owner in (OWNER, "bob@example.test"):
        for number in range(15):
            await maildir.keep(owner, DeliveryId(f"N{number}-0"), b"x")
    assert maildir._boxes.ids <= 21
    assert [await maildir.keep(OWNER, DeliveryId(f"N{number}-0"), b"x") for number in range(15)] == [False] * 15


async def test_a_mailbox_that_lost_its_directories_gets_new_ones(tmp_path: Path) -> None:
    maildir = a_maildir(tmp_path)
    await maildir.keep(OWNER, ID, CONTENT)
    for name in ("new", "cur"):
        shutil.rmtree(box(tmp_path) / name)
    assert await maildir.keep(OWNER, OTHER, CONTENT) is True
    shutil.rmtree(box(tmp_path))
    assert await maildir.keep(OWNER, DeliveryId("C-0"), CONTENT) is True
    assert len(await maildir.messages(OWNER)) == 1


async def test_many_messages_that_move_while_they_are_removed_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maildir = a_maildir(tmp_path)
    for number in range(20):
        await maildir.keep(OWNER, DeliveryId(f"N{number}-0"), b"x")
    listings = 0
    real = maildir_module.list_files

    def list_and_move(path: Path, *, folders: bool = False) -> Any:
        nonlocal listings
        listings += 1
        found = list(real(path, folders=folders))
        if listings == 1:
            move_to_cur(tmp_path)
        return iter(found)

    for module in (maildir_module, listing_module):
        monkeypatch.setattr(module, "list_files", list_and_move)
    await maildir.expunge(OWNER, [f"N{number}-0" for number in range(15)])
    assert len(files(tmp_path, "new", "cur")) == 5
    assert listings == 2


def test_a_flush_is_shared_only_by_those_who_asked_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []
    first_runs, go_on = threading.Event(), threading.Event()

    def slow_flush(_path: Path) -> None:
        began.append(len(began))
        if len(began) == 1:
            first_runs.set()
            assert go_on.wait(10)

    monkeypatch.setattr(flush_module, "flush_directory", slow_flush)
    flush = flush_module.SharedFlush(tmp_path)
    threads = [threading.Thread(target=flush.flush) for _ in range(6)]
    threads[0].start()
    assert first_runs.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while flush._asked < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(began) == 2  # the first, and one for the five who came while it ran


async def test_a_journal_of_the_first_format_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mailboxes outlive releases: this text must stay readable."""
    monkeypatch.setattr(box_module, "boot_id", lambda: "boot-2")
    await a_maildir(tmp_path).keep(OWNER, OTHER, CONTENT)
    maildir = a_maildir(tmp_path, clock=lambda: 1_700_100_000.0)
    (box(tmp_path) / "eilpost-delivered.old").write_text("b boot-0 1690000000\nk OLD-0\nx GONE-0\n")
    (box(tmp_path) / "eilpost-delivered").write_bytes(
        b"b boot-1 1700000000\nk PERHAPS-0\nnonsense\n\xff\x00\n\nb boot-2 1700090000\nk SURE-0\nz later kind\nk TORN-"
    )
    ids = ["OLD-0", "GONE-0", "PERHAPS-0", "SURE-0", "TORN-0"]
    assert [await maildir.keep(OWNER, DeliveryId(name), b"x") for name in ids] == [True, False, True, False, True]
    again = a_maildir(tmp_path, clock=lambda: 1_700_100_000.0)
    assert [await again.keep(OWNER, DeliveryId(name), b"x") for name in ids] == [False] * 5
