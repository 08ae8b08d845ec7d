"""Output of a command: closed pipes, other locales, internal errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from eilpost import cli
from tests.support.clients.commands import Run, one_line
from tests.support.servers.eilpost_process import EILPOST, directory_toml

pytestmark = pytest.mark.slow


def test_bug_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
        result = subprocess.run(
            [EILPOST, "user", "list"], cwd=home, stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (result.returncode, result.stderr) == (0, b"")


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
        result = subprocess.run([EILPOST, command], cwd=home, stdout=nobody, stderr=nobody, timeout=60, check=False)
    assert result.returncode == status


@pytest.mark.parametrize(("closed", "status"), [("1", 0), ("2", 2)], ids=["stdout", "stderr"])
def test_closed_output_is_no_error_and_is_not_redirected(home: Path, closed: str, status: int) -> None:
    (home / "eilpost.toml").write_text('[node]\nhostname = "mx.example.test"\n' if status == 0 else "node\n")
    command = ["sh", "-c", f'exec "$0" config check {closed}>&-', str(EILPOST)]
    result = subprocess.run(command, cwd=home, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", b"")


def test_closed_input_is_empty(home: Path) -> None:
    command = ["sh", "-c", 'exec "$0" user add carol@example.test --password-stdin <&-', str(EILPOST)]
    result = subprocess.run(command, cwd=home, capture_output=True, timeout=60, check=False, text=True)
    assert (result.returncode, one_line(result.stderr)) == (2, "eilpost: the password is empty\n")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at-exit", "at-once"])
def test_output_to_a_full_disk_is_one_error_line(home: Path, unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [EILPOST, "user", "list"],
            cwd=home,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            text=True,
        )
    assert result.returncode == 2
    assert "No space left on device" in one_line(result.stderr)


def test_names_of_any_script_print_in_any_locale(home: Path) -> None:
    (home / "directory.toml").write_text(directory_toml(("böb",)), encoding="utf-8")
    result = subprocess.run(
        [EILPOST, "user", "list"],
        cwd=home,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.splitlines() == [rb"b\xf6b@example.test"]
