"""Tests of the warnings about a valid directory file."""

from __future__ import annotations

from pathlib import Path

import pytest

from eilpost.doctor.directory_warnings import directory_warnings
from mail.directory.file import load

DIRECTORY = """\
[domains."example.test"]
[domains."relay.test"]
relay = "smtp://mx.relay.test:25"
[users."alice@example.test"]
password = "$argon2id$v=19$m=19456,t=2,p=1$xbr48egEdQc+3+PULJF1Uw$jiRygMOj+KaQcbsa55rcTz1anCO3DDKxw9z8UEe6Zik"
[aliases]
"""


def warnings(path: Path, aliases: str = "", *, mode: int = 0o640) -> list[str]:
    path.write_text(DIRECTORY + aliases)
    path.chmod(mode)
    return [warning.text for warning in directory_warnings(load(path)[0], path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "directory.toml"


def test_sound_directory_has_no_warning(path: Path) -> None:
    aliases = """\
"team@example.test" = ["alice@example.test", "alice+team@example.test", "all@example.test", "x@relay.test"]
"all@example.test" = ["team@far.test"]
"alice@example.test" = ["alice@example.test", "backup@far.test"]
"""
    assert warnings(path, aliases) == []


def test_aliases_of_missing_mailboxes_are_named(path: Path) -> None:
    targets = ", ".join(f'"ghost{number}@example.test"' for number in range(7))
    (text,) = warnings(path, f'"team@example.test" = ["alice@example.test", {targets}]\n')
    assert "team@example.test -> ghost0@example.test, " in text
    assert text.endswith("ghost4@example.test and 2 more")


def test_catch_all_receives_for_every_target(path: Path) -> None:
    assert (
        warnings(path, '"@example.test" = ["alice@example.test"]\n"team@example.test" = ["any@example.test"]\n') == []
    )


def test_password_hashes_that_everybody_can_read(path: Path) -> None:
    (text,) = warnings(path, mode=0o644)
    assert text == f"{path} has password hashes and every user of this machine can read it"


def test_directory_without_domains(path: Path) -> None:
    path.write_text("")
    path.chmod(0o644)
    (warning,) = directory_warnings(load(path)[0], path)
    assert warning.text.startswith(f"{path} has no domains: ")
