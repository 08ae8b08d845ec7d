"""The command line: every error is one line on stderr and an exit status, without a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer

from eilpost import cli, format
from tests.support.builders import records as samples
from tests.support.clients.commands import Run, one_line
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml

pytestmark = pytest.mark.slow


def test_version_is_printed(run: Run) -> None:
    assert run("version")[1].startswith("eilpost 0.1.0")
    assert run("--version") == run("version")


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


def test_directory_without_domains_is_a_warning(run: Run, home: Path) -> None:
    (home / "directory.toml").write_text("# nobody\n")
    status, out, err = run("config", "check")
    assert (status, "domains: 0" in out, "no domains" in one_line(err)) == (0, True, True)


def test_missing_configuration_isone_line(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    shown = run("config", "show")[1]
    assert 'secret_key = "***"  # EILPOST_SPOOL__SECRET_KEY\n' in shown
    assert "hush" not in shown + run("config", "show", "--json")[1]
    assert run("config", "check")[0] == 0
    monkeypatch.delenv("EILPOST_SPOOL__SECRET_KEY")
    (home / "again.toml").write_text(shown)
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace",), "QUEUE_ID"),
        (("nonsense",), "'nonsense'; see `eilpost --help`"),
        (("queue", "--limit", "x"), "--limit"),
        (("user", "add", "a@example.test", "--nix"), "--nix"),
    ],
)
def test_usage_error_isone_line(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], says: str) -> None:
    monkeypatch.setenv("EILPOST_DEBUG", "1")
    status, out, err = run(*arguments)
    assert (status, out, says in one_line(err)) == (2, "", True)


def test_help_is_plain_and_lists_the_exit_statuses(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "<bool>" not in out + run("trace", "--help")[1]
    text = " ".join(out.split())
    assert "a check failed; 2 wrong configuration or arguments;" in text
    assert "130 interrupted" in text
    status, out, err = run("user")
    assert (status, out, err.startswith("Usage: eilpost user")) == (2, "", True)


def _commands() -> list[tuple[str, ...]]:
    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk((*path, name), child)

    return list(walk((), typer.main.get_command(cli.app)))


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_help_is_the_same_by_option_and_by_command(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, "-h")
    assert (status, err) == (0, "")
    assert run(*command, "--help") == run("help", *command) == (0, out, "")
    assert not re.search(r"\w\.\.\.", out)  # no text is cut because it is too long for its place
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("command", [each for each in _commands() if each not in {(), ("version",)}])
def test_examples_of_a_command_call_it(run: Run, command: tuple[str, ...]) -> None:
    out = run("help", *command)[1]
    examples = out.partition("Examples:\n")[2].splitlines()
    if "Commands:" in out:  # a group: its commands have the examples
        return
    assert examples
    assert all(f"eilpost {' '.join(command)}" in line for line in examples)


def test_help_of_an_unknown_command_isone_line(run: Run) -> None:
    status, out, err = run("help", "user", "nonsense")
    assert (status, out) == (2, "")
    assert "no command 'user nonsense'" in one_line(err)


def test_missing_directory_file_is_the_same_line_everywhere(run: Run, home: Path) -> None:
    (home / "directory.toml").unlink()
    assert run("user", "list") == run("config", "check")


@pytest.mark.parametrize("role", ["ingress", "router", "delivery"])
def test_single_role_on_an_embedded_log_is_refused(run: Run, role: str) -> None:
    status, _, err = run(role)
    assert status == 2
    assert "eilpost up" in one_line(err)


def test_trace_refuses_an_invalid_queue_id_and_a_missing_log(run: Run, home: Path) -> None:
    for wrong in ("nonsense", "8" * 26, "Z" * 26, samples.queue_id(9) + "X"):
        status, _, err = run("trace", wrong)
        assert (status, f"{wrong!r} is not a queue id" in one_line(err)) == (1, True)
    status, _, err = run("trace", samples.queue_id(9))
    assert status == 2
    assert str(home / "var/log.db") in one_line(err)


def test_queue_and_trace_read_a_log_without_a_server(run: Run, log: Path) -> None:
    status, out, err = run("queue")
    assert (status, samples.delivery(1).id in out, "451 4.3.0 Try again later" in out) == (0, True, True)
    assert "no server is running on this log" in one_line(err)
    [line] = json.loads(run("queue", "--json")[1])
    assert (line["attempts"], line["state"], line["sender"]) == (1, "deferred", str(samples.BOB))
    site = format.format_site(samples.delivery(1).route)
    [row] = json.loads(run("queue", "--top", "3", "--json")[1])
    assert (row["site"], row["state"], row["recipients"]) == (site, "deferred", 1)
    out = run("queue", "--top", "3")[1]
    assert (row["site"] in out, samples.delivery(1).id in out) == (True, False)
    status, out, _ = run("trace", samples.queue_id(1).lower())
    assert (status, "queued, now" in out) == (0, True)
    assert json.loads(run("trace", samples.queue_id(1), "--json")[1])["events"][0]["event"] == "accepted"
    status, _, err = run("trace", samples.queue_id(7))
    assert (status, "no such message" in one_line(err)) == (1, True)


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
    listed = json.loads(run("domain", "list", "--json")[1])
    assert listed[-1] == {"domain": "new.test", "tenant": "default", "relay": "", "users": 0, "aliases": 1}
    assert run("domain", "list")[1].endswith("new.test  tenant default, users: 0, aliases: 1\n")
    assert json.loads(run("alias", "list", "--json")[1])[-1] == {
        "alias": "@new.test",
        "targets": ["alice@example.test", "bob@example.test"],
    }
    assert run("alias", "list")[1].endswith("@new.test -> alice@example.test, bob@example.test\n")
    status, out, err = run("user", "rm", "bob@example.test")
    assert (status, out, "is a target of the alias @new.test" in one_line(err)) == (1, "", True)
    assert run("alias", "rm", "@new.test")[0] == 0
    assert "its mail is not deleted" in run("user", "rm", "bob@example.test")[1]
    assert run("domain", "rm", "new.test")[0] == 0
    status, out, err = run("domain", "rm", "new.test")
    assert (status, out, "there is no domain new.test" in one_line(err)) == (1, "", True)


def test_bug_isone_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from eilpost import users

    def broken(_path: Path) -> None:
        raise RuntimeError("oh\nno")

    monkeypatch.setattr(users, "list_users", broken)
    structlog.reset_defaults()
    try:
        status, out, err = run("user", "list")
    finally:
        structlog.reset_defaults()
    assert (status, out) == (70, "")
    assert "internal error" in one_line(err)
    monkeypatch.setenv("EILPOST_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["eilpost", "user", "list"])
    with pytest.raises(RuntimeError):
        cli.main()


@pytest.mark.parametrize("users", [2, 2000], ids=["less-than-a-buffer", "more"])
def test_reader_that_closes_the_pipe_is_no_error(home: Path, users: int) -> None:
    (home / "directory.toml").write_text(directory_toml(tuple(f"u{number}" for number in range(users))))
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        listed = subprocess.run(
            [EILPOST, "user", "list"], cwd=home, stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (listed.returncode, listed.stderr) == (0, b"")


@pytest.mark.parametrize(("command", "text"), [("doctor", '[log]\nurl = "kafka://127.0.0.1:1"\n'), ("up", "node\n")])
def test_exit_status_does_not_depend_on_a_reader(
    home: Path, command: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` writes its results to stdout, `up` its errors to stderr."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # buffered output fails at exit
    (home / "eilpost.toml").write_text(text)
    status = subprocess.run([EILPOST, command], cwd=home, capture_output=True, timeout=60, check=False).returncode
    assert status > 0
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        ended = subprocess.run([EILPOST, command], cwd=home, stdout=nobody, stderr=nobody, timeout=60, check=False)
    assert ended.returncode == status


@pytest.mark.parametrize(("closed", "status"), [("1", 0), ("2", 2)], ids=["stdout", "stderr"])
def test_closed_output_is_no_error_and_is_not_redirected(home: Path, closed: str, status: int) -> None:
    (home / "eilpost.toml").write_text('[node]\nhostname = "mx.example.test"\n' if status == 0 else "node\n")
    command = ["sh", "-c", f'exec "$0" config check {closed}>&-', str(EILPOST)]
    done = subprocess.run(command, cwd=home, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_names_of_any_script_print_in_any_locale(home: Path) -> None:
    (home / "directory.toml").write_text(directory_toml(("böb",)), encoding="utf-8")
    listed = subprocess.run(
        [EILPOST, "user", "list"],
        cwd=home,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert listed.stdout.splitlines() == [rb"b\xf6b@example.test"]


def test_configuration_is_utf8_in_any_locale(home: Path) -> None:
    (home / "eilpost.toml").write_text("# für uns\n[node]\n", encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (["config", "show"], ["config", "check"], ["user", "list"]):
        done = subprocess.run([EILPOST, *arguments], cwd=home, capture_output=True, timeout=60, check=False, env=plain)
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_undecodable_password_isone_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "ascii", "surrogateescape"))
    status, _, err = run("user", "passwd", "alice@example.test", "--password-stdin")
    assert (status, "not UTF-8" in one_line(err)) == (2, True)


def _starts(box: EilpostProcess) -> tuple[int, str]:
    """Run the command to its end; returns its exit status and stderr."""
    ended = subprocess.run(
        [*box.command, "--config", str(box.config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("section", "key"), [("ingress", "smtp_listen"), ("mailstore", "pop3_listen"), ("http", "listen")]
)
def test_used_port_names_the_key_and_the_variable(tmp_path: Path, section: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        box = EilpostProcess(tmp_path, {section: {key: f"127.0.0.1:{taken.getsockname()[1]}"}})
        before = {path.name for path in tmp_path.iterdir()}
        status, err = _starts(box)
    assert status == 2
    assert one_line(err).startswith(f"eilpost: {section}.{key}: cannot listen on 127.0.0.1:")
    assert f"EILPOST_{section}__{key}".upper() in err
    assert {path.name for path in tmp_path.iterdir()} == before  # a failed start leaves no files


def test_all_used_ports_are_named_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [taken.getsockname()[1] for taken in (one, other)]
        box = EilpostProcess(
            tmp_path,
            {
                "ingress": {"smtp_listen": f"127.0.0.1:{ports[0]}"},
                "mailstore": {"pop3_listen": f"127.0.0.1:{ports[1]}"},
            },
        )
        status, err = _starts(box)
    assert status == 2
    assert (
        f"ingress.smtp_listen, mailstore.pop3_listen: cannot listen on 127.0.0.1:{ports[0]}, 127.0.0.1:{ports[1]}:"
        in one_line(err)
    )
    assert "EILPOST_INGRESS__SMTP_LISTEN, EILPOST_MAILSTORE__POP3_LISTEN" in err


def test_mailstore_without_listeners_isone_line(run: Run, home: Path) -> None:
    (home / "eilpost.toml").write_text('[mailstore]\npop3_listen = ""\n')
    status, _, err = run("mailstore")
    assert (status, "mailstore.pop3_listen is empty, nothing to serve" in one_line(err)) == (2, True)


def test_second_process_on_the_same_data_directory_isone_line(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "home") as first:
        if not first.is_running:
            first.start()
        status, err = _starts(EilpostProcess(tmp_path / "second", {"log": {"url": f"embedded:{first.home}/log.db"}}))
        assert status == 2
        assert str(first.home) in one_line(err)
        assert first.is_running
