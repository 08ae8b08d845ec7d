"""`eilpost move` on the command line: its options, its progress on a terminal, its summary.

Never opens a log. Next: `eilpost/move/__init__.py`, which says how a move goes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from eilpost.terminal import JsonOption, TenantOption, print_json, run, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from eilpost.move.command import Count, Moved

_EPILOG = (
    "Stop everything on both sides first. Killed at any instant, the same command goes on where it stopped; start"
    " neither side before it has ended."
)


def register(app: typer.Typer) -> None:
    app.command("move", epilog=_EPILOG)(move)


def move(
    source: Annotated[str, typer.Option("--from", metavar="LOG", help="A log's URL, or a configuration file.")],
    target: Annotated[str, typer.Option("--to", metavar="LOG", help="The same.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="What a URL leaves open: spool, prefix, security."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; also while mail flows.")] = False,
    history: Annotated[
        bool | None,
        typer.Option(
            "--history/--no-history",
            help="Take along what `eilpost trace` tells of open messages. Default: yes, but not from Kafka (slow).",
        ),
    ] = None,
    lost_too: Annotated[
        bool, typer.Option("--lost-too", help="Move also what has lost its content, to be bounced there.")
    ] = False,
    tenant: TenantOption = "",
    json: JsonOption = False,
) -> None:
    """Move everything that is queued from one log to another."""
    from dataclasses import asdict

    from eilpost.move import command
    from eilpost.move.ends import ends

    here, there = ends(source, target, config, tenant)
    if dry_run:
        found = run(command.count(here, there))
        print_json(asdict(found)) if json else print(_count_words(found))  # noqa: T201
        return
    with _Shown() as shown:
        moved = run(
            command.move(
                here,
                there,
                history=here.scheme != "kafka" if history is None else history,
                lost_too=lost_too,
                progress=shown,
                say=shown.say,
            )
        )
    if json:
        print_json({**asdict(moved.tally), "lost": moved.lost, "seconds": round(moved.seconds, 3)})
    else:
        print(_moved_words(moved))  # noqa: T201


class _Shown:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._total = 0

    def __enter__(self) -> _Shown:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("moving"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._task = self._bar.add_task("moving", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, letters: int) -> None:
        self._total += letters
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total)

    def moved(self, letters: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, letters)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"eilpost: {text}", markup=False, highlight=False)
        else:
            say(text)


def _count_words(found: Count) -> str:
    from eilpost.words import size_words

    return (
        f"to move: {found.messages:,} messages, {found.unread:,} of them not yet read by the router;"
        f" {found.deliveries:,} deliveries ({found.in_hand:,} in hand, {found.held:,} on hold),"
        f" {size_words(found.size_bytes)} in them"
    )


def _moved_words(moved: Moved) -> str:
    from datetime import timedelta

    from eilpost.words import age_words, size_words

    tally = moved.tally
    words = (
        f"moved {tally.messages:,} messages ({tally.unread:,} not yet read by the router), {tally.deliveries:,}"
        f" deliveries, {size_words(tally.size_bytes)}, {tally.events:,} lines of history in"
        f" {age_words(timedelta(seconds=moved.seconds))}"
    )
    if tally.known:
        words += f"; {tally.known:,} were there already, from a move that did not end"
    if moved.lost:
        words += f"; {moved.lost:,} without their content, which was lost before"
    return words
