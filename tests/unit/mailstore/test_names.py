"""Owner directories and message file names: reversible, and always inside the root."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mail.message import DeliveryId
from mailstore.maildir.names import message_name, owner_directory, parse_name, with_seen

_PART = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=250)
HOSTILE = ["..", ".", "/", "../../etc/passwd", "a/b", '"', "a\x00b", "%2e%2e", "%", ".hidden", "ALICE", "ü", "a@b", "~"]


def directory_owner(directory: str) -> str:
    """Inverse of `owner_directory`."""
    domain, local = directory.replace("%/", "").split("/")
    return f"{unquote(local)}@{unquote(domain)}"


@given(_PART, _PART.filter(lambda text: "@" not in text))
@example("..", "..")
@example("a" * 300, "ü" * 120)
def test_owner_directory_is_reversible_and_inside_the_root(local: str, domain: str) -> None:
    owner = f"{local}@{domain}"
    directory = owner_directory(owner)
    assert directory_owner(directory) == owner
    parts = PurePosixPath(directory).parts
    assert os.path.normpath(directory) == directory
    assert all(not part.startswith(".") and part.isascii() and len(part) <= 255 for part in parts)
    assert set(directory) <= set("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_+.%/")


@pytest.mark.parametrize("local", HOSTILE)
def test_hostile_local_part_stays_in_its_domain_directory(local: str) -> None:
    directory = owner_directory(f"{local}@example.test")
    domain, *rest = directory.split("/")
    assert domain == "example.test"
    assert len(rest) == 1
    assert not rest[0].startswith(".")
    assert directory_owner(directory) == f"{local}@example.test"


@given(st.lists(st.tuples(_PART, _PART), min_size=2, max_size=2, unique=True))
def test_two_owners_never_share_a_directory(owners: list[tuple[str, str]]) -> None:
    keys = [f"{local}@{domain.replace('@', '_')}" for local, domain in owners]
    if keys[0] != keys[1]:
        assert owner_directory(keys[0]) != owner_directory(keys[1])


def test_plain_owner_directory_equals_dovecots() -> None:
    assert owner_directory("alice.b-c_d+e@example.test") == "example.test/alice.b-c_d+e"


@pytest.mark.parametrize("owner", ["", "alice", "@example.test", "alice@"])
def test_invalid_owner_is_refused(owner: str) -> None:
    with pytest.raises(ValueError, match="not an address key"):
        owner_directory(owner)


def test_message_name_is_parsed_back() -> None:
    name = message_name(1_732_404_870_000_042, DeliveryId("01JDXJ5Z8QABCDEFGHJKMNPQRS-12"), "mx/a:b,c.test", 1234, 1240)
    assert "/" not in name
    assert ":" not in name
    assert ",S=1234,W=1240" in name
    assert name.count(",") == 2
    assert len(message_name(1, DeliveryId("x" * 64), "long." * 50, 10**9, 10**9)) < 220
    for flagged, flags in ((name, ""), (f"{name}:2,FS", "FS"), (f"{name}:2,", "")):
        parsed = parse_name(flagged)
        assert parsed.delivery_id == parsed.uid == "01JDXJ5Z8QABCDEFGHJKMNPQRS-12"
        assert parsed.micros == 1_732_404_870_000_042
        assert parsed.size_bytes == 1234
        assert parsed.flags == flags


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a.b", "x" * 65, "a b", "a\n"])
def test_invalid_delivery_id_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="not a delivery id"):
        message_name(1, DeliveryId(bad), "mx", 1, 1)


def test_names_of_other_programs_are_parsed() -> None:
    dovecot = parse_name("1732404870.M1P2.host,S=100,W=103:2,S")
    assert (dovecot.uid, dovecot.delivery_id, dovecot.size_bytes, dovecot.seen) == (
        "1732404870.M1P2.host",
        None,
        103,
        True,
    )
    unusual = parse_name("ünder wegs" + "x" * 100)
    assert (unusual.micros, unusual.size_bytes, unusual.flags) == (None, None, "")
    assert len(unusual.uid) == 32


@given(st.text(min_size=1, max_size=80))
def test_any_file_name_has_a_uid(name: str) -> None:
    assert 1 <= len(parse_name(name).uid) <= 70


def test_seen_flag_is_added_in_order() -> None:
    assert with_seen("a,S=1") == "a,S=1:2,S"
    assert with_seen("a:2,RT") == "a:2,RST"
    assert with_seen("a:2,S") == "a:2,S"
