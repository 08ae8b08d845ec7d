"""`eilpost load`: options, their checks, and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from eilpost.cli_help import examples
from eilpost.terminal import EXIT_UNUSABLE, JsonOption, fail, print_json, print_message, result_output, run

T = TypeVar("T")

EPILOG = (
    "The server must relay to the sink (delivery.relay) and accept the sender's domain. Exit status: 0 every"
    " message was accepted, and delivered or bounced (messages in doubt, without a reply to the final dot, may or may"
    " not arrive: they do not fail the load); 1 a message was lost, refused (5xx) or not sent, or an unexpected message"
    " arrived, or no message was accepted; 2 wrong options, or no target responds; 130 interrupted. After SIGTERM no"
    " message is sent and open ones are awaited; SIGINT, or a second SIGTERM, interrupts.\n\n"
) + examples(
    "eilpost load --messages 1000 --rate 0",
    "eilpost load --rate 200 --duration 5m --size 2kB:80,100kB:18,1MB:2",
    "eilpost load --failing 5% --deferring 5% --json",
)


def load(
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="HOST:PORT", help="A server; may be repeated, for round robin. Default: 127.0.0.1:2525."
        ),
    ] = None,
    sink: Annotated[
        str, typer.Option("--sink", metavar="HOST:PORT", help="Where the sink listens for relayed mail.")
    ] = "127.0.0.1:2626",
    rate: Annotated[
        float, typer.Option(min=0, max=100_000, metavar="N", help="Messages per second; 0: no limit.")
    ] = 50,
    duration: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help='How long to send, for example "5m". Default: 60s, or no limit with --messages.'
        ),
    ] = None,
    messages: Annotated[
        int | None, typer.Option(min=1, max=5_000_000, metavar="N", help="Maximum number of messages.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Concurrent connections.")] = 20,
    per_connection: Annotated[
        int, typer.Option("--per-connection", min=1, metavar="N", help="Messages per connection.")
    ] = 100,
    size: Annotated[
        str, typer.Option(metavar="SIZES", help='For example "10kB", or with weights "2kB:80,100kB:18,1MB:2".')
    ] = "10kB",
    recipients: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Recipients per message.")] = 1,
    domains: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Number of destination domains.")] = 10,
    failing: Annotated[
        str, typer.Option(metavar="SHARE", help='Share of recipients that the sink refuses (550), for example "5%".')
    ] = "0%",
    deferring: Annotated[
        str,
        typer.Option(metavar="SHARE", help='Share of recipients that the sink defers once (451), for example "5%".'),
    ] = "0%",
    domain: Annotated[
        str, typer.Option(metavar="DOMAIN", help="Parent domain of the destination domains.")
    ] = "load.test",
    sender: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Envelope sender; the server must relay its domain to the sink.")
    ] = "",
    settle: Annotated[
        str, typer.Option(metavar="TIME", help="Messages still open after this time without progress are lost.")
    ] = "60s",
    json: JsonOption = False,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Allow public target addresses. Use it for your own servers only.")
    ] = False,
    allow_any_domain: Annotated[
        bool, typer.Option("--allow-any-domain", help="Allow domains other than .test, .example and .invalid.")
    ] = False,
) -> None:
    """Send mail through a server to a sink; account for all."""
    import secrets
    from datetime import UTC, datetime
    from email.utils import format_datetime

    from eilpost.load import report
    from eilpost.load.command import MAX_RECIPIENTS_IN_ALL, Options
    from eilpost.load.command import load as run_load
    from eilpost.load.target import check_domain
    from eilpost.load.workload import Workload, parse_share, parse_sizes
    from eilpost.output import Output
    from mail import endpoint
    from mail.units import parse_duration

    def seconds(text: str) -> float:
        return parse_duration(text).total_seconds()

    def reserved(text: str) -> str:
        return check_domain(text, allow_any=allow_any_domain)

    def address(text: str) -> str:
        local, at_sign, name = text.rpartition("@")
        if not at_sign or not local.replace(".", "").replace("-", "").isalnum() or not local.isascii():
            raise ValueError("an address is expected, like sender@load.test")
        return f"{local}@{reserved(name)}"

    def server(text: str) -> tuple[str, int]:
        host, port = endpoint.parse(text)
        if not port:
            raise ValueError("a port from 1 to 65535 is expected")
        return host, port

    options = Options(
        targets=tuple(_parsed("--target", address_text, server) for address_text in target or ["127.0.0.1:2525"]),
        sink=_parsed("--sink", sink, endpoint.parse),
        rate=rate,
        duration_seconds=_parsed("--duration", duration or "60s", seconds) if duration or not messages else None,
        messages=messages,
        sessions=sessions,
        per_connection=per_connection,
        settle_seconds=_parsed("--settle", settle, seconds),
        allow_public=allow_public,
    )
    failing_share = _parsed("--failing", failing, parse_share)
    deferring_share = _parsed("--deferring", deferring, parse_share)
    if failing_share + deferring_share > 1:
        fail("--failing and --deferring: together at most 100% are expected", EXIT_UNUSABLE)
    kinds = 1 + bool(failing_share) + bool(deferring_share)
    if domains < kinds:
        fail(f"--domains {domains}: at least {kinds}, one for each kind of destination", EXIT_UNUSABLE)
    if messages is not None and messages * recipients > MAX_RECIPIENTS_IN_ALL:
        limit = f"at most {MAX_RECIPIENTS_IN_ALL:,} recipients in all are expected"
        fail(f"--messages and --recipients: {limit}", EXIT_UNUSABLE)
    for option, value in (("--duration", options.duration_seconds), ("--settle", options.settle_seconds)):
        if value is not None and not 0 < value <= 86400:
            fail(f"{option}: a time above 0 and up to 24h is expected", EXIT_UNUSABLE)
    workload = Workload(
        secrets.token_hex(4),
        domain=_parsed("--domain", domain, reserved),
        sender=_parsed("--sender", sender, address) if sender else "",
        domains=domains,
        recipients=recipients,
        failing=failing_share,
        deferring=deferring_share,
        sizes=_parsed("--size", size, parse_sizes),
        date=format_datetime(datetime.now(UTC)),
    )
    result = run(run_load(options, workload, print_message), fast=True)
    with result_output():
        if json:
            print_json(report.as_json(result))
        else:
            output = Output()
            for line in report.lines(result):
                output.write(*line)
    if hint := report.hint(result):
        print_message(hint)
    raise typer.Exit(result.status)


def _parsed(option: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        fail(f"{option} {text}: {error}", EXIT_UNUSABLE)
