"""`eilpost move`: options, progress bar and summary."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eilpost.cli_help import examples
from eilpost.terminal import JsonOption, TenantOption, print_json, print_message, run

if TYPE_CHECKING:
    from eilpost.move.command import MoveCount
    from eilpost.move.run import MoveTotals

EPILOG = (
    "Stop all processes on both logs first, and start none before the command has ended. If it is interrupted, the same"
    " command continues.\n\n"
) + examples(
    "eilpost move --from eilpost.toml --to cluster.toml --dry-run",
    "eilpost move --from embedded:var/log.db --to kafka://127.0.0.1:9092",
)


def move(
    source: Annotated[str, typer.Option("--from", metavar="LOG", help="A log's URL, or a configuration file.")],
    target: Annotated[str, typer.Option("--to", metavar="LOG", help="A log's URL, or a configuration file.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Settings that a URL does not contain: spool, prefix, security."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; processes may run.")] = False,
    history: Annotated[
        bool | None,
        typer.Option(
            "--history/--no-history",
            help="Also move the history of open messages. Default: yes, but no from Kafka (slow).",
        ),
    ] = None,
    lost_too: Annotated[
        bool, typer.Option("--lost-too", help="Also move messages without content; they bounce there.")
    ] = False,
    tenant: TenantOption = "",
    json: JsonOption = False,
) -> None:
    """Move all queued mail from one log to another."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from eilpost.move import command
    from eilpost.move.endpoints import parse_endpoints

    source_endpoint, target_endpoint = parse_endpoints(source, target, config, tenant)
    if dry_run:
        count = run(command.count(source_endpoint, target_endpoint))
        print_json(asdict(count)) if json else print(_count_text(count))  # noqa: T201
        return
    columns = TextColumn("moving"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    task = bar.add_task("moving", total=None)

    def progress(found: int, moved: int) -> None:
        bar.update(task, total=(bar.tasks[task].total or 0) + found, advance=moved)

    with bar if sys.stderr.isatty() else nullcontext():
        totals = run(
            command.move(
                source_endpoint,
                target_endpoint,
                history=source_endpoint.scheme != "kafka" if history is None else history,
                lost_too=lost_too,
                progress=progress,
                print_message=print_message,
            )
        )
    if json:
        print_json({**asdict(totals), "seconds": round(totals.seconds, 3)})
    else:
        print(_moved_text(totals))  # noqa: T201


def _count_text(count: MoveCount) -> str:
    from eilpost.format import format_bytes

    return (
        f"to move: {count.messages:,} messages, {count.unread:,} of them not yet read by the router;"
        f" {count.deliveries:,} deliveries ({count.active:,} active, {count.held:,} held),"
        f" {format_bytes(count.size_bytes)} in them"
    )


def _moved_text(totals: MoveTotals) -> str:
    from datetime import timedelta

    from eilpost.format import format_age, format_bytes

    text = (
        f"moved {totals.messages:,} messages ({totals.unread:,} not yet read by the router), {totals.deliveries:,}"
        f" deliveries, {format_bytes(totals.size_bytes)}, {totals.events:,} history events in"
        f" {format_age(timedelta(seconds=totals.seconds))}"
    )
    if totals.known:
        text += f"; {totals.known:,} were moved before by an interrupted move"
    if totals.lost:
        text += f"; {totals.lost:,} without content, which was lost before"
    return text
