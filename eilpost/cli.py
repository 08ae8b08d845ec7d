"""The command line: arguments, the call of the module that does the work, and the exit status.

An error is one line on stderr that names the key or argument, and a traceback only if EILPOST_DEBUG is set. Modules
that are slow to import are imported inside the commands.
"""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypeVar

import typer

from eilpost import cli_cluster, cli_directory, cli_help, cli_load, cli_move
from eilpost.cli_config import config_app
from eilpost.cli_help import examples
from eilpost.entry_point import EXIT_INTERRUPTED
from eilpost.terminal import (
    EXIT_NOT_FOUND,
    EXIT_UNUSABLE,
    ConfigOption,
    JsonOption,
    TenantOption,
    discard_output,
    fail,
    now,
    print_json,
    print_message,
    run,
    usage_error_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from mail.log import HistoryLog

T = TypeVar("T")

app = typer.Typer(
    name="eilpost",
    cls=cli_help.GroupedCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # the commands inherit it
    epilog="`eilpost help COMMAND` shows the options of a command and examples.\n\nExit status: 0 success; 1 the"
    " message, user or other object does not exist, or exists already, or a check failed; 2 wrong configuration or"
    " arguments; 70 an internal error; 130 interrupted.",
)
app.add_typer(config_app, name="config")
app.add_typer(cli_cluster.topics_app, name="topics")
app.add_typer(cli_directory.user_app, name="user")
app.add_typer(cli_directory.domain_app, name="domain")
app.add_typer(cli_directory.alias_app, name="alias")
app.command(epilog=examples("eilpost doctor", "eilpost doctor --json"))(cli_cluster.doctor)
app.command(epilog=cli_load.EPILOG)(cli_load.load)
app.command(epilog=cli_move.EPILOG)(cli_move.move)
app.command(epilog=examples("source <(eilpost completion bash)"))(cli_help.completion)
app.command(epilog=examples("eilpost man --dir /usr/local/share/man/man1"))(cli_help.man)
app.command("help", epilog=examples("eilpost help", "eilpost help trace", "eilpost help user add"))(
    cli_help.help_command
)


def _version(is_requested: bool) -> None:
    if is_requested:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A mail transfer agent whose queue is a replicated log."""


def main() -> None:
    """Run the command of sys.argv; raises SystemExit with its status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed (2>&-): its number must not become that of a socket
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    out = sys.stdout
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # for characters that the locale cannot encode
    try:
        sys.exit(app(prog_name="eilpost", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit:
        try:
            if _output_was_closed(out):
                sys.exit(0)
        except OSError as error:  # a full disk
            sys.exit(_report_error(error))
        raise
    except Exception as error:  # the outermost handler
        status = usage_error_status(error)
        if status is not None:
            sys.exit(status)
        if os.environ.get("EILPOST_DEBUG"):
            raise
        sys.exit(_report_error(error))
    finally:
        for stream in (out, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a failed flush at exit would make the status 120
                discard_output(stream)


def _output_was_closed(out: TextIO) -> bool:
    """Whether the command ended because the reader of its output ended, as in `eilpost queue | head`: no error."""
    was_replaced = sys.stdout is not out  # typer replaced it after BrokenPipeError
    try:
        out.flush()
    except BrokenPipeError:
        discard_output(out)
    return was_replaced


def _report_error(error: Exception) -> int:
    """One line on stderr; the exit status."""
    import structlog

    from eilpost.directory_editor import EditRefused
    from mail import service

    if isinstance(error, EditRefused):
        print_message(str(error))
        return EXIT_NOT_FOUND
    if isinstance(error, OSError):
        print_message(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_UNUSABLE
    if not structlog.is_configured():  # a command, not a server: without the log line and its traceback
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return service.report(error)


@app.command(epilog=examples("eilpost up --config /etc/eilpost/eilpost.toml"))
def up(config: ConfigOption = None) -> None:
    """Run all roles in one process until SIGTERM or Ctrl-C."""
    from eilpost import configuration, process

    raise typer.Exit(process.run(configuration.load_process_config(config)))


@app.command(epilog=examples("eilpost demo", "eilpost demo --dir /tmp/demo", "eilpost demo --cluster"))
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIRECTORY",
            help="Where the demo stores its files. Default: var/demo, with --cluster var/demo-cluster.",
        ),
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Run seven processes on a Kafka cluster of three brokers.")
    ] = False,
    brokers: Annotated[str, typer.Option(metavar="URL", help="With --cluster: the Kafka brokers.")] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65525,
            metavar="PORT",
            help="With --cluster: the first of eleven ports: two SMTP, one POP3, seven HTTP, the sink. Default: SMTP"
            " 2525 and 2526, POP3 2110, HTTP 8025 to 8031, sink 2627.",
        ),
    ] = None,
) -> None:
    """Run all roles with example.test, alice and bob."""
    from eilpost import configuration, process
    from eilpost import demo as the_demo
    from eilpost.demo_sink import DemoSink, sink_port

    if cluster:
        from eilpost import demo_cluster

        path = demo_cluster.create_files(folder or Path("var/demo-cluster"), brokers or demo_cluster.BROKERS)
        ports = demo_cluster.Ports() if port is None else demo_cluster.Ports.consecutive(port)
        raise typer.Exit(demo_cluster.run(path, the_demo.program(), ports))
    folder = folder or Path("var/demo")
    path = the_demo.create_files(folder)
    process_config = configuration.load_process_config(path)
    port_of_sink = sink_port(path, process_config.settings)
    sink = None if port_of_sink is None else DemoSink(port_of_sink)

    def print_banner() -> None:
        sink_listens = sink is not None and sink.listens
        print(the_demo.banner(process_config.settings, path, the_demo.program(), sink_listens=sink_listens), flush=True)  # noqa: T201

    raise typer.Exit(process.run(process_config, on_ready=print_banner, support=() if sink is None else (sink,)))


@app.command(epilog=examples("eilpost ingress --config cluster.toml"))
def ingress(config: ConfigOption = None) -> None:
    """Run the ingress role (SMTP), on Kafka, for all tenants."""
    from eilpost import configuration, process

    raise typer.Exit(process.run_role("ingress", configuration.load_process_config(config)))


def _role(name: str) -> Callable[[Path | None, str], None]:
    def command(config: ConfigOption = None, tenant: TenantOption = "") -> None:
        from eilpost import configuration, process

        raise typer.Exit(process.run_role(name, configuration.load_process_config(config).for_tenant(tenant)))

    command.__doc__ = f"Run the {name} role, on Kafka."
    return command


for _name in ("router", "delivery"):
    app.command(
        _name,
        epilog=examples(
            f"eilpost {_name} --config cluster.toml", f"eilpost {_name} --config cluster.toml --tenant acme"
        ),
    )(_role(_name))


@app.command(epilog=examples("eilpost mailstore --config cluster.toml"))
def mailstore(config: ConfigOption = None) -> None:
    """Run the mailstore role (POP3); it needs no log."""
    from eilpost import configuration, process

    raise typer.Exit(process.run_mailstore(configuration.load_process_config(config)))


@app.command(
    epilog=examples(
        "eilpost trace QUEUE_ID", "eilpost trace QUEUE_ID --follow", "eilpost trace QUEUE_ID --bounces --json"
    )
)
def trace(
    queue_id: Annotated[
        str, typer.Argument(metavar="QUEUE_ID", help="From the 250 reply, the Received header or a log line.")
    ],
    config: ConfigOption = None,
    json: JsonOption = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new events until the message is closed.")
    ] = False,
    bounces: Annotated[bool, typer.Option("--bounces", "-b", help="Also show the bounces of the message.")] = False,
) -> None:
    """Show the history of a message, from its acceptance on."""
    from eilpost import json_output
    from eilpost import trace_view as tracing
    from eilpost.output import Output
    from mail.message import QueueId, queue_id_time

    traced_id = QueueId(queue_id.strip().upper().partition("-")[0])  # a delivery id is accepted too
    try:
        queue_id_time(traced_id)
    except ValueError:
        fail(f"{queue_id!r} is not a queue id: 26 letters and digits, as in the 250 reply", EXIT_UNUSABLE)
    if json and follow:
        fail("--json and --follow exclude each other", EXIT_UNUSABLE)
    output = Output()

    async def show(log: HistoryLog) -> bool:
        if follow:
            return await tracing.follow(log, traced_id, output, now)
        timelines = await tracing.load_timelines(log, traced_id, with_bounces=bounces)
        if json:
            documents = [json_output.timeline_json(timeline, now()) for timeline in timelines]
            if documents:
                print_json(documents if bounces else documents[0])
        else:
            for timeline in timelines:
                tracing.write(timeline, output, now())
        return bool(timelines)

    if not _with_history(config, show):
        fail(f"{traced_id}: no such message, or its history is older than log.events_retention", EXIT_NOT_FOUND)


@app.command(
    epilog=examples(
        "eilpost queue",
        "eilpost queue --site example.test --limit 0",
        "eilpost queue --after QUEUE_ID-1",
        "eilpost queue --top 10 --json",
        "eilpost queue --record QUEUE_ID-accepted-17 > record",
    )
)
def queue(
    config: ConfigOption = None,
    json: JsonOption = False,
    tenant: TenantOption = "",
    site: Annotated[str | None, typer.Option(metavar="NAME", help="Only sites whose name contains NAME.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of deliveries, the oldest first; 0: all.")] = 50,
    after: Annotated[
        str, typer.Option(metavar="DELIVERY", help="Start after this delivery: the last one that was shown.")
    ] = "",
    top: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only a summary: the N sites and states with the most recipients; 0: all."
        ),
    ] = None,
    record: Annotated[
        str, typer.Option(metavar="DELIVERY", help="Only write the bytes of this corrupt record to stdout.")
    ] = "",
) -> None:
    """Show queued deliveries: age, attempts, last reply."""
    from eilpost import configuration, json_output, queue_view, wiring
    from eilpost.output import Output
    from mail.log.queue_summary import QueueSummary
    from mail.message import DeliveryId, queue_id_of, queue_id_time

    def delivery_id(option: str, text: str) -> DeliveryId:
        shown = text.strip()
        parsed = DeliveryId(shown[:26].upper() + shown[26:])
        try:
            queue_id_time(queue_id_of(parsed))
        except ValueError:
            fail(f"{option} {text!r}: a delivery id of `eilpost queue` is expected", EXIT_UNUSABLE)
        return parsed

    if record:
        data = _with_history(config, lambda log: queue_view.record_bytes(log, delivery_id("--record", record)), tenant)
        if data is None:
            fail(f"{record}: no such record in the state corrupt", EXIT_NOT_FOUND)
        sys.stdout.buffer.write(data)
        return
    last_shown = delivery_id("--after", after) if after else None

    async def show(log: HistoryLog) -> None:
        position = await queue_view.position_of(log, last_shown) if last_shown else None
        summary = QueueSummary(site=site, after=position, limit=limit if top is None else 1)
        await log.summarize_queue(summary)
        if json and top is not None:
            print_json([queue_view.totals_json(*row) for row in summary.top(top)])
        elif json:
            print_json([json_output.queue_entry_json(entry, now()) for entry in summary.oldest])
        else:
            queue_view.write(summary, await log.backlog(), Output(), now(), top)
        if location := wiring.offline_location(log):
            source = f"configuration file: {configuration.find(config) or 'none'}"
            print_message(
                f"no server is running on {location} ({source}): no delivery is attempted until one is started"
            )

    _with_history(config, show, tenant)


@app.command()
def version() -> None:
    """Print the version of eilpost and of Python."""
    import platform

    from eilpost import __version__

    print(f"eilpost {__version__} (Python {platform.python_version()})")  # noqa: T201


def _with_history(config: Path | None, read: Callable[[HistoryLog], Coroutine[Any, Any, T]], tenant: str = "") -> T:
    from eilpost import configuration, tenants
    from mail.log import LogNotAuthorized, LogUnavailable

    log = tenants.open_history(configuration.load_process_config(config).for_tenant(tenant))
    try:
        return run(read(log))
    except LogNotAuthorized as error:
        fail(str(error), EXIT_UNUSABLE)
    except LogUnavailable as error:
        fail(f"{error}: try again in ten seconds, or run `eilpost doctor`", EXIT_UNUSABLE)
