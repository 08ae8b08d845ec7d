"""`eilpost config`, and the search for the configuration: every error is one line that names the key."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.clients.commands import Run, one_line
from tests.support.servers.eilpost_process import EILPOST

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[node]\nhostnam = "x"\n', "node.hostnam"),
        ("[router]\nqueue_lifetime = 5\n", "router.queue_lifetime"),
        ('[log]\nurl = "kafka://127.0.0.1"\n', "log.url"),
        ('[ingress]\nsmtp_listen = "2525"\n', "ingress.smtp_listen"),
        ("[nod]\n", "nod"),
        ("node\n", "TOML"),
        ('[directory]\nurl = "file:nix.toml"\n', "nix.toml"),
    ],
)
def test_invalid_configuration_is_one_line_that_names_the_key(run: Run, home: Path, text: str, says: str) -> None:
    (home / "eilpost.toml").write_text(text)
    status, _, err = run("config", "check")
    assert status == 2
    assert says in one_line(err)


def test_control_characters_of_a_directory_key_do_not_reach_the_terminal(run: Run, home: Path) -> None:
    (home / "directory.toml").write_text('[domains."a\\u001b[2Jb\\u202e.test"]\n')
    status, _, err = run("config", "check")
    assert (status, "a\\x1b[2Jb\\u202e.test" in one_line(err)) == (2, True)
    assert err.rstrip("\n").isprintable()


def test_directory_without_domains_is_a_warning(run: Run, home: Path) -> None:
    (home / "directory.toml").write_text("# nobody\n")
    status, out, err = run("config", "check")
    assert (status, "domains: 0" in out, "no domains" in one_line(err)) == (0, True, True)


def test_missing_configuration_is_one_line(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = run("up", "--config", "nix.toml")
    assert (status, "nix.toml" in one_line(err)) == (2, True)
    (home / "eilpost.toml").unlink()
    status, _, err = run("queue")
    assert status == 2
    assert "EILPOST_CONFIG" in one_line(err) or "/etc/eilpost" in err
    monkeypatch.setenv("EILPOST_INGRESS_SMTP_LISTEN", "127.0.0.1:25")
    status, _, err = run("queue")
    assert (status, "did you mean EILPOST_INGRESS__SMTP_LISTEN?" in one_line(err)) == (2, True)
    monkeypatch.delenv("EILPOST_INGRESS_SMTP_LISTEN")
    monkeypatch.setenv("EILPOST_CONFIG", "gone.toml")
    status, _, err = run("queue")
    assert (status, "gone.toml" in one_line(err)) == (2, True)


def test_url_instead_of_a_file_is_shown_without_its_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://user:secret@example.test/eilpost.toml"
    _, _, err = run("config", "check", "--config", url)
    assert one_line(err).startswith("eilpost: https:/***@example.test/eilpost.toml: there is no such file")
    monkeypatch.setenv("EILPOST_CONFIG", url)
    _, _, err = run("config", "check")
    assert one_line(err) == "eilpost: EILPOST_CONFIG: https://***@example.test/eilpost.toml: there is no such file\n"
    _, _, err = run("config", "check", "--config", "/etc/mail@home/eilpost.toml")
    assert "/etc/mail@home/eilpost.toml" in err


def test_start_without_a_file_reports_the_configuration_source(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "eilpost.toml").unlink()
    monkeypatch.setenv("EILPOST_ROUTER__QUEUE_LIFETIME", "2d")
    status, out, err = run("user", "list", "--json")
    assert (status, len(json.loads(out))) == (0, 2)
    assert one_line(err).startswith("eilpost: no configuration file (searched eilpost.toml, ")
    assert f"using the defaults, EILPOST_ROUTER__QUEUE_LIFETIME, and {home}" in err
    # configured by environment variables, as in a pod
    monkeypatch.setenv("EILPOST_LOG__URL", f"embedded:{home}/log.db")
    assert run("user", "list", "--json") == (0, out, "")


def test_effective_settings_show_their_source(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EILPOST_ROUTER__QUEUE_LIFETIME", "2d")
    status, out, _ = run("config", "show", "--json")
    tables = json.loads(out)
    assert status == 0
    assert tables["node"]["hostname"] == {"value": "mx.example.test", "source": "eilpost.toml"}
    assert tables["router"]["queue_lifetime"] == {"value": "2d", "source": "EILPOST_ROUTER__QUEUE_LIFETIME"}
    assert tables["http"]["listen"]["source"] == "default"


def test_config_show_hides_secrets_and_shows_sources(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "eilpost.toml").write_text('[spool]\nurl = "s3://mail"\naccess_key = "me"\n')
    monkeypatch.setenv("EILPOST_SPOOL__SECRET_KEY", "hush")
    output = run("config", "show")[1]
    assert 'secret_key = "***"  # EILPOST_SPOOL__SECRET_KEY\n' in output
    assert "hush" not in output + run("config", "show", "--json")[1]
    assert run("config", "check")[0] == 0
    monkeypatch.delenv("EILPOST_SPOOL__SECRET_KEY")
    (home / "again.toml").write_text(output)
    status, _, err = run("config", "check", "--config", "again.toml")
    assert (status, "the secret itself is expected" in one_line(err)) == (2, True)


def test_output_of_config_show_is_a_valid_configuration(run: Run, home: Path) -> None:
    (home / "again.toml").write_text(run("config", "show")[1])
    (home / "defaults.toml").write_text(run("config", "show", "--defaults")[1])
    assert run("config", "check", "--config", "again.toml")[0] == 0
    assert run("config", "check", "--config", "defaults.toml")[0] == 0


def test_defaults_are_available_as_json(run: Run) -> None:
    tables = json.loads(run("config", "show", "--defaults", "--json")[1])
    assert tables["router"]["queue_lifetime"]["default"] == "5d"
    assert tables["log"]["url"]["meaning"].startswith('"embedded:FILE"')


def test_missing_directory_file_is_the_same_line_everywhere(run: Run, home: Path) -> None:
    (home / "directory.toml").unlink()
    assert run("user", "list") == run("config", "check")


def test_configuration_is_utf8_in_any_locale(home: Path) -> None:
    (home / "eilpost.toml").write_text("# für uns\n[node]\n", encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (["config", "show"], ["config", "check"], ["user", "list"]):
        result = subprocess.run(
            [EILPOST, *arguments], cwd=home, capture_output=True, timeout=60, check=False, env=plain
        )
        assert (result.returncode, result.stderr) == (0, b""), arguments
