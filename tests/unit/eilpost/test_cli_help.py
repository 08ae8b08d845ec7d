"""Help texts and usage errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import typer

from eilpost import cli
from eilpost.cli_help import COMMAND_GROUPS
from tests.support.clients.commands import Run, one_line

pytestmark = pytest.mark.slow


def test_version_is_printed(run: Run) -> None:
    assert run("version")[1].startswith("eilpost 0.1.0")
    assert run("--version") == run("version")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace",), "QUEUE_ID"),
        (("nonsense",), "'nonsense'; see `eilpost --help`"),
        (("qeue",), "Did you mean 'queue'? See `eilpost --help`"),
        (("queue", "--limit", "x"), "eilpost: --limit x: a whole number is expected; see `eilpost queue --help`"),
        (("load", "--rate", "abc"), "eilpost: --rate abc: a number is expected; see `eilpost load --help`"),
        (("queue", "--limit", "-3"), "eilpost: --limit -3: at least 0 is expected;"),
        (("demo", "--port", "70000"), "eilpost: --port 70000: at most 65525 is expected;"),
        (("user", "add", "a@example.test", "--nix"), "--nix"),
    ],
)
def test_usage_error_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], says: str
) -> None:
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


def test_commands_are_listed_in_groups_the_most_used_first(run: Run) -> None:
    lines = run("help")[1].splitlines()
    sections = {line for line in lines if re.fullmatch(r"[A-Z][\w ,]+:", line)}
    assert sections == {"Options:", *(f"{title}:" for title in COMMAND_GROUPS)}
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z]+ {2,}[A-Z]", line)]
    assert listed == [name for names in COMMAND_GROUPS.values() for name in names]
    assert listed == list(_root().commands)


def _root() -> Any:
    return typer.main.get_command(cli.app)


def _commands() -> list[tuple[str, ...]]:
    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk((*path, name), child)

    return list(walk((), _root()))


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_help_is_the_same_by_option_and_by_command(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, "-h")
    assert (status, err) == (0, "")
    assert run(*command, "--help") == run("help", *command) == (0, out, "")
    assert not re.search(r"\w\.\.\.", out)  # no text is cut because it is too long for its place
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("command", [command for command in _commands() if command not in {(), ("version",)}])
def test_examples_of_a_command_call_it(run: Run, command: tuple[str, ...]) -> None:
    out = run("help", *command)[1]
    examples = out.partition("Examples:\n")[2].splitlines()
    if "Commands:" in out:  # a group: its commands have the examples
        return
    assert examples
    assert all(f"eilpost {' '.join(command)}" in line for line in examples)


def test_help_of_an_unknown_command_is_one_line(run: Run) -> None:
    status, out, err = run("help", "user", "nonsense")
    assert (status, out) == (2, "")
    assert "no command 'user nonsense'" in one_line(err)
