"""`eilpost user`, `eilpost domain` and `eilpost alias` on the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.support.clients.commands import Run, one_line
from tests.support.servers.eilpost_process import directory_toml

pytestmark = pytest.mark.slow


def test_user_passwords_come_from_stdin(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    assert run("user", "add", "carol@example.test", "--password-stdin")[0] == 0
    assert "carol@example.test" in run("user", "list")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    status, _, err = run("user", "passwd", "carol@example.test", "--password-stdin")
    assert (status, "empty" in one_line(err)) == (2, True)
    (home / "directory.toml").write_text(directory_toml(aliases={"dave@example.test": ["alice@example.test"]}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    status, _, err = run("user", "add", "Dave@example.test", "--password-stdin")
    assert (status, "is also an alias" in one_line(err)) == (0, True)
    status, _, err = run("user", "passwd", "dave@example.test")
    assert (status, "--password-stdin" in one_line(err)) == (2, True)
    status, _, err = run("user", "passwd", "nobody@example.test", "--password-stdin")
    assert (status, "nobody@example.test" in one_line(err)) == (1, True)


def test_domains_and_aliases_by_command(run: Run, home: Path) -> None:
    assert run("domain", "add", "new.test")[:2] == (0, "new.test added to directory.toml\n")
    assert run("alias", "add", "@new.test", "alice@example.test", "bob@example.test")[0] == 0
    domains = json.loads(run("domain", "list", "--json")[1])
    assert domains[-1] == {"domain": "new.test", "tenant": "default", "relay": "", "users": 0, "aliases": 1}
    assert run("domain", "list")[1].endswith("new.test  tenant default, users: 0, aliases: 1\n")
    assert json.loads(run("alias", "list", "--json")[1])[-1] == {
        "alias": "@new.test",
        "targets": ["alice@example.test", "bob@example.test"],
    }
    assert run("alias", "list")[1].endswith("@new.test -> alice@example.test, bob@example.test\n")
    status, out, err = run("user", "rm", "bob@example.test")
    assert (status, out, "or remove it with `eilpost alias rm @new.test`" in one_line(err)) == (1, "", True)
    status, _, err = run("alias", "add", "Alice@example.test", "bob@example.test")
    assert (status, "Alice@example.test is also a mailbox" in one_line(err)) == (0, True)
    assert run("alias", "rm", "alice@example.test")[0] == 0
    assert run("alias", "rm", "@new.test")[0] == 0
    assert "its mail is not deleted" in run("user", "rm", "bob@example.test")[1]
    assert run("domain", "rm", "new.test")[0] == 0
    status, out, err = run("domain", "rm", "new.test")
    assert (status, out, "there is no domain new.test" in one_line(err)) == (1, "", True)
    assert run("user", "add", "zed@new.test", "--password-stdin")[0] == 1
    assert run("alias", "add", "zed@new.test", "alice@example.test")[0] == 1
    assert run("user", "rm", "zed")[0] == 2


def test_undecodable_password_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "ascii", "surrogateescape"))
    status, _, err = run("user", "passwd", "alice@example.test", "--password-stdin")
    assert (status, "not UTF-8" in one_line(err)) == (2, True)
