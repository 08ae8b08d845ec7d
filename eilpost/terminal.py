"""Shared parts of CLI commands: options, error lines on stderr, JSON on stdout, event loop.

Commands do not log unless EILPOST_DEBUG is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime
    from typing import Any

T = TypeVar("T")

EXIT_NOT_FOUND = 1
EXIT_UNUSABLE = 2

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file. Default: $EILPOST_CONFIG, ./eilpost.toml, /etc/eilpost/eilpost.toml, the demo's.",
    ),
]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Only this dedicated tenant.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command_group(help: str) -> typer.Typer:
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)


def print_message(text: str) -> None:
    with suppress(OSError):  # closed pipe or full disk; the exit status remains
        print(f"eilpost: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def result_output() -> Iterator[None]:
    """Context for a command whose exit status is its result: a closed stdout (`eilpost doctor | head`) does not change
    the status.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)


def discard_output(stream: TextIO) -> None:
    """Redirect the stream to /dev/null; otherwise Python prints an error at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def fail(text: str, status: int) -> NoReturn:
    print_message(text)
    raise typer.Exit(status)


def run(main: Coroutine[Any, Any, T], *, fast: bool = False) -> T:
    """Run an asynchronous command; `fast`: on uvloop, as servers do."""
    import asyncio
    import gc

    from mail import logging_setup, service

    if os.environ.get("EILPOST_DEBUG"):
        logging_setup.configure("debug", "text")
    else:
        logging_setup.disable()
    gc.set_threshold(50_000)  # a command is short and reads many records: 10 % less CPU in `eilpost queue` on Kafka
    with asyncio.Runner(loop_factory=service.loop_factory() if fast else None) as runner:
        return runner.run(main)


def now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def print_json(value: object) -> None:
    from eilpost.json_output import to_json

    print(to_json(value))  # noqa: T201


def usage_error_status(error: Exception) -> int | None:
    """Print a usage error of typer and return the exit status; None when `error` is another exception.

    typer bundles click or uses the installed one, so its errors are recognised by their attributes.
    """
    format_message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if format_message is None:
        return None
    text = _wrong_number(error) or str(format_message())
    if text.startswith("Usage:"):  # a group without a command prints its help
        print(text, file=sys.stderr)  # noqa: T201
    else:
        sentence = " ".join(text.split()).rstrip(".")
        separator = " See" if sentence.endswith("?") else "; see"
        hint = f"{separator} `{context.command_path} --help`" if context is not None else ""
        print_message(f"{sentence}{hint}")
    return EXIT_UNUSABLE


def _wrong_number(error: Exception) -> str:
    """The text for an option that is not a number, or not one in its range; empty for another error."""
    option, details = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if option is None or details is None:
        return ""
    detail = details()[0]
    expected = {
        "int_parsing": "a whole number is expected",
        "float_parsing": "a number is expected",
        "greater_than_equal": "at least {ge} is expected",
        "less_than_equal": "at most {le} is expected",
    }.get(detail["type"])
    if expected is None:
        return ""
    return f"{option.opts[0]} {detail['input']}: {expected.format_map(detail.get('ctx', {}))}"
