"""`eilpost domain` and `eilpost alias` edit the directory file as text and change nothing else in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eilpost import domains, users
from eilpost.directory_editor import EditRefused
from mail.directory import DirectoryUnusable
from mail.settings_section import SettingsError

FILE = """\
# our house
[tenants.acme]

[domains."example.test"]  # the first domain
tenant = "default"

# relayed
[domains."far.test"]
relay = "mx"

[users."alice@example.test"]

# who else
[aliases]
# for RFC 5321
"postmaster@example.test" = [
  "alice@example.test",  # on duty
]
"info@example.test" = ["postmaster@example.test"]  # public
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "directory.toml"
    path.write_text(FILE)
    return path


def test_a_domain_is_inserted_after_the_last_one(file: Path) -> None:
    domains.add_domain(file, "new.test", tenant="acme", relay="smtp://mail.new.test:25")
    new = '[domains."new.test"]\ntenant = "acme"\nrelay = "smtp://mail.new.test:25"\n\n'
    position = FILE.index('[users."alice')
    assert file.read_text() == FILE[:position] + new + FILE[position:]
    assert domains.list_domains(file)[-1] == domains.DomainListing(
        "new.test", "acme", "smtp://mail.new.test:25", users=0, aliases=0
    )


def test_a_domain_that_was_added_is_removed_without_a_trace(file: Path) -> None:
    domains.add_domain(file, "bücher.test")
    assert domains.remove_domain(file, "xn--bcher-kva.test") == "bücher.test"
    assert file.read_text() == FILE


def test_a_removed_domain_leaves_comments(file: Path) -> None:
    domains.remove_domain(file, "FAR.test")
    assert file.read_text() == FILE.replace('[domains."far.test"]\nrelay = "mx"\n', "")


@pytest.mark.parametrize("text", ["", "# a comment", '[tenants.acme]\n[users."alice@example.test"]\n'])
def test_the_first_domain_of_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "directory.toml"
    file.write_text(text)
    if "users" in text:
        with pytest.raises(DirectoryUnusable):
            domains.add_domain(file, "other.test")
        return
    domains.add_domain(file, "example.test")
    assert [listing.domain for listing in domains.list_domains(file)] == ["example.test"]
    assert file.read_text().startswith(text)


def test_a_domain_in_use_is_not_removed(file: Path) -> None:
    with pytest.raises(EditRefused, match=r"example\.test has users: alice@example\.test; remove them first"):
        domains.remove_domain(file, "example.test")
    domains.add_domain(file, "new.test")
    domains.add_alias(file, "@new.test", ["alice@example.test"], depth=8)
    before = file.read_text()
    with pytest.raises(EditRefused, match=r"new\.test has aliases: @new\.test"):
        domains.remove_domain(file, "new.test")
    domains.add_alias(file, "away@example.test", ["someone@far.test"], depth=8)
    with pytest.raises(EditRefused, match=r"someone@far\.test is a target of the alias away@example\.test"):
        domains.remove_domain(file, "far.test")
    domains.remove_alias(file, "away@example.test")
    assert file.read_text() == before


def test_the_last_domain_is_not_removed(file: Path) -> None:
    file.write_text('[domains."example.test"]\n')
    with pytest.raises(EditRefused, match="is the last domain"):
        domains.remove_domain(file, "example.test")


def test_a_refused_domain_leaves_the_file_unchanged(file: Path) -> None:
    with pytest.raises(EditRefused, match="exists already"):
        domains.add_domain(file, "Example.TEST")
    with pytest.raises(EditRefused, match=r"no domain other\.test"):
        domains.remove_domain(file, "other.test")
    with pytest.raises(SettingsError, match="is not a domain"):
        domains.add_domain(file, "alice@example.test")
    with pytest.raises(DirectoryUnusable, match=r"no \[tenants\.nobody\]"):
        domains.add_domain(file, "new.test", tenant="nobody")
    with pytest.raises(DirectoryUnusable, match="relay"):
        domains.add_domain(file, "new.test", relay="nonsense")
    assert file.read_text() == FILE


def test_an_alias_is_appended_and_removed_without_a_trace(file: Path) -> None:
    domains.add_alias(file, "Sales@example.test", ["alice@example.test", "boss@other.test"], depth=8)
    assert file.read_text() == FILE + '"Sales@example.test" = ["alice@example.test", "boss@other.test"]\n'
    assert domains.list_aliases(file)[-1] == domains.AliasListing(
        "Sales@example.test", ("alice@example.test", "boss@other.test")
    )
    assert domains.remove_alias(file, "sales@EXAMPLE.test") == "Sales@example.test"
    assert file.read_text() == FILE


def test_an_alias_of_several_lines_is_removed_whole(file: Path) -> None:
    domains.remove_alias(file, "info@example.test")
    domains.remove_alias(file, "postmaster@example.test")
    assert file.read_text() == FILE[: FILE.index('"postmaster@')]


def test_the_first_alias_of_a_file(file: Path) -> None:
    file.write_text('[domains."example.test"]\n[users."alice@example.test"]\n')
    domains.add_alias(file, "@example.test", ["alice@example.test"], depth=8)
    assert file.read_text().endswith('\n\n[aliases]\n"@example.test" = ["alice@example.test"]\n')


@pytest.mark.parametrize(
    ("alias", "target", "error"),
    [
        ("postmaster@example.test", "alice@example.test", "exists already; remove it first"),
        ("loop@example.test", "loop@example.test", "Alias loop detected"),
        (
            "sales@example.test",
            "nobody@example.test",
            "there is no mailbox nobody@example.test; add it with `eilpost user add nobody@example.test`",
        ),
        ("sales@other.test", "alice@example.test", "there is no domain other.test"),
        ("sales@example.test", "alice", "is not an address"),
    ],
)
def test_a_refused_alias_leaves_the_file_unchanged(file: Path, alias: str, target: str, error: str) -> None:
    with pytest.raises((EditRefused, SettingsError), match=error.replace(".", r"\.")):
        domains.add_alias(file, alias, [target], depth=8)
    assert file.read_text() == FILE


def test_a_chain_of_aliases_is_as_long_as_the_router_allows(file: Path) -> None:
    with pytest.raises(EditRefused, match="nested too deeply"):
        domains.add_alias(file, "a@example.test", ["info@example.test"], depth=1)
    domains.add_alias(file, "a@example.test", ["info@example.test"], depth=2)


def test_an_alias_may_have_its_own_mailbox_as_a_target(file: Path) -> None:
    domains.add_alias(file, "alice@example.test", ["alice@example.test", "copy@other.test"], depth=8)
    assert users.list_users(file)[0].aliases == ("postmaster@example.test", "alice@example.test")


def test_an_alias_that_another_one_needs_is_not_removed(file: Path) -> None:
    with pytest.raises(EditRefused, match=r"postmaster@example\.test is a target of the alias info@example\.test"):
        domains.remove_alias(file, "postmaster@example.test")
    with pytest.raises(EditRefused, match=r"no alias nobody@example\.test"):
        domains.remove_alias(file, "nobody@example.test")
    assert file.read_text() == FILE


def test_aliases_in_an_unusual_layout_are_left_unchanged(file: Path) -> None:
    text = 'aliases = {"a@example.test" = ["alice@example.test"]}\n' + FILE[: FILE.index("# who else")]
    file.write_text(text)
    with pytest.raises(SettingsError, match="by hand"):
        domains.remove_alias(file, "a@example.test")
    with pytest.raises(SettingsError, match="by hand"):
        domains.add_alias(file, "b@example.test", ["alice@example.test"], depth=8)
    assert file.read_text() == text
