"""The command line. It parses arguments, calls what does the work, and turns every fault into one line and a status.

Exit status: 0 done; 1 what was asked about does not exist (an unknown queue id, a user), or does already, or a check
fails; 2 cannot run as configured or called (settings, a port in use, a data directory that is held or unreadable), the
line on stderr names the key; 70 a bug of ours; 130 interrupted. No traceback reaches a person unless EILPOST_DEBUG is
set. What is slow to import is imported inside the commands.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypeVar

import typer

from eilpost import cli_cluster, cli_load, cli_move
from eilpost.cli_config import config_app
from eilpost.terminal import (
    EXIT_NOT_FOUND,
    EXIT_UNUSABLE,
    ConfigOption,
    JsonOption,
    TenantOption,
    command_group,
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

EXIT_INTERRUPTED = 130

_SERVERS = {"up", "demo", "ingress", "router", "delivery", "mailstore"}
_HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)

app = typer.Typer(
    name="eilpost",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done; 1 what was asked about does not exist, or does already, or a check fails; 2 cannot run"
    " as configured or called; 70 a bug of ours; 130 interrupted.",
)
user_app = command_group("Mailboxes: add, change a password, list.")
app.add_typer(user_app, name="user")
app.add_typer(config_app, name="config")
cli_cluster.register(app)
cli_load.register(app)
cli_move.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A distributed, queue-backed mail transport cluster."""


AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="A whole address, like alice@example.test.")]


def main() -> None:
    """The entry point."""
    if os.getpid() == 1:  # of a container: the kernel gives PID 1 no default action, and SIGTERM would be lost
        signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    if sys.argv[1:2] and sys.argv[1] in _SERVERS and not (sys.stderr is not None and sys.stderr.isatty()):
        for (
            signal_number
        ) in _HARMLESS:  # until mail/signals.py catches them; as handlers, which programs do not inherit
            signal.signal(signal_number, lambda _number, _frame: None)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed (2>&-): what is printed there is dropped
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    out = sys.stdout
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # a name in no script of this locale is no fault
    try:
        sys.exit(app(prog_name="eilpost", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit:
        if _output_was_closed(out):
            sys.exit(0)
        raise
    except Exception as error:
        status = usage_error_status(error)
        if status is not None:
            sys.exit(status)
        if os.environ.get("EILPOST_DEBUG"):
            raise
        sys.exit(_report_error(error))
    finally:
        try:
            sys.stderr.flush()
        except BrokenPipeError:  # a failed flush at exit would make the status 120
            discard_output(sys.stderr)


def _output_was_closed(out: TextIO) -> bool:
    """Whether the command ended early because nobody reads its output, which is no fault: `eilpost queue | head`."""
    gone = sys.stdout is not out  # typer saw it and put a silent one in its place
    try:
        out.flush()
    except BrokenPipeError:
        discard_output(out)
    return gone


def run_role(role: str) -> None:
    """The entry point of `python -m ROLE`."""
    sys.argv[:1] = ["eilpost", role]
    main()


def _report_error(error: Exception) -> int:
    """One line on stderr; the exit status."""
    import structlog

    from eilpost.users import NoSuchUser, UserExists
    from mail import service

    if isinstance(error, NoSuchUser | UserExists):
        print_message(str(error))
        return EXIT_NOT_FOUND
    if isinstance(error, OSError):
        print_message(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_UNUSABLE
    if not structlog.is_configured():  # a command, not a server: its output is no place for the traceback of a bug
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return service.report(error)


@app.command()
def up(config: ConfigOption = None) -> None:
    """Run all roles in one process."""
    from eilpost import configuration, process

    raise typer.Exit(process.run_all(configuration.load_plan(config)))


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIRECTORY", help="Where the demo keeps its things: var/demo, or var/demo-cluster."
        ),
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Seven processes, two of each role but mailstore, on a Kafka of three brokers."),
    ] = False,
    brokers: Annotated[str, typer.Option(metavar="URL", help="With --cluster: the Kafka.")] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65526,
            metavar="PORT",
            help="With --cluster: ten ports from here on, two for SMTP, one for POP3, seven for HTTP; else 2525, 2526,"
            " 2110, and 8025 and on.",
        ),
    ] = None,
) -> None:
    """Run all roles on a small world of its own, with alice and bob."""
    from eilpost import configuration, process
    from eilpost import demo as the_demo

    if cluster:
        from eilpost import demo_cluster

        path = demo_cluster.create_files(folder or Path("var/demo-cluster"), brokers or demo_cluster.BROKERS)
        ports = demo_cluster.Ports() if port is None else demo_cluster.Ports.consecutive(port)
        raise typer.Exit(demo_cluster.run(path, demo_cluster.program(), ports))
    folder = folder or Path("var/demo")
    path = the_demo.create_files(folder)
    plan = configuration.load_plan(path)
    program = sys.argv[0] if "/" in sys.argv[0] else "eilpost"
    raise typer.Exit(process.run_all(plan, lambda: print(the_demo.banner(plan.settings, path, program), flush=True)))  # noqa: T201


@app.command()
def ingress(config: ConfigOption = None) -> None:
    """Run the ingress role alone, for all tenants, on a log that processes share."""
    from eilpost import configuration, process

    raise typer.Exit(process.run_role("ingress", configuration.load_plan(config)))


def _role(name: str) -> Callable[[Path | None, str], None]:
    def command(config: ConfigOption = None, tenant: TenantOption = "") -> None:
        from eilpost import configuration, process

        raise typer.Exit(process.run_role(name, configuration.load_plan(config).for_tenant(tenant)))

    command.__doc__ = f"Run the {name} role alone, on a log that processes share."
    return command


for _name in ("router", "delivery"):
    app.command(_name)(_role(_name))


@app.command()
def mailstore(config: ConfigOption = None) -> None:
    """Serve the mailboxes (POP3) and nothing else."""
    from eilpost import configuration, process

    raise typer.Exit(process.run_mailstore(configuration.load_plan(config)))


@app.command()
def trace(
    queue_id: Annotated[
        str, typer.Argument(metavar="QUEUE_ID", help="As in the 250 reply, the Received header and the log lines.")
    ],
    config: ConfigOption = None,
    json: JsonOption = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the message is closed.")
    ] = False,
    bounces: Annotated[bool, typer.Option("--bounces", "-b", help="Tell the stories of its bounces too.")] = False,
) -> None:
    """Tell the whole story of a message."""
    from eilpost import json_output
    from eilpost import trace_view as tracing
    from eilpost.output import Output
    from mail.message import QueueId, queue_id_time

    wanted = QueueId(queue_id.strip().upper().partition("-")[0])  # a delivery id will do
    try:
        queue_id_time(wanted)
    except ValueError:
        fail(f"{queue_id!r} is not a queue id: 26 letters and digits, as in the 250 reply", EXIT_NOT_FOUND)
    if json and follow:
        fail("--json and --follow do not go together", EXIT_UNUSABLE)
    output = Output()

    async def show(log: HistoryLog) -> bool:
        if follow:
            return await tracing.follow(log, wanted, output, now)
        timelines = await tracing.load_timelines(log, wanted, with_bounces=bounces)
        if json:
            documents = [json_output.timeline_json(timeline, now()) for timeline in timelines]
            if documents:
                print_json(documents if bounces else documents[0])
        else:
            for timeline in timelines:
                tracing.write(timeline, output, now())
        return bool(timelines)

    if not _with_history(config, show):
        fail(f"{wanted}: no such message here, or older than its history is kept (log.events_kept)", EXIT_NOT_FOUND)


@app.command()
def queue(
    config: ConfigOption = None,
    json: JsonOption = False,
    tenant: TenantOption = "",
    site: Annotated[str | None, typer.Option(metavar="NAME", help="Only next hops whose name has this part.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many deliveries, the oldest first; 0: all.")] = 50,
    top: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only the N sites and states with the most recipients, like --top 10; 0: all."
        ),
    ] = None,
) -> None:
    """Show what is open: age, next attempt, attempts, last reply."""
    from eilpost import json_output, queue_view, wiring
    from eilpost.output import Output

    async def show(log: HistoryLog) -> None:
        view = await queue_view.load(log.pending_deliveries(), site=site, limit=limit if top is None else 1)
        if json and top is not None:
            print_json([queue_view.totals_json(*row) for row in view.top(top)])
        elif json:
            print_json([json_output.pending_json(pending, now()) for pending in view.oldest])
        else:
            queue_view.write(view, await log.backlog(), Output(), now(), top)
        if wiring.is_offline(log):
            print_message("no server runs on this log: nothing moves until one is started")

    _with_history(config, show, tenant)


@user_app.command("add")
def user_add(
    address: AddressArgument,
    config: ConfigOption = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    quota: Annotated[str, typer.Option(metavar="SIZE", help='Like "1GiB"; none: no limit.')] = "",
) -> None:
    """Add a mailbox."""
    from eilpost import configuration, users, wiring
    from mail.units import parse_size

    path = wiring.directory_path(configuration.load_plan(config))
    if quota:
        try:
            parse_size(quota)
        except ValueError as error:
            fail(f"--quota {quota}: {error}", EXIT_UNUSABLE)
    if users.is_alias_elsewhere(path, users.check_new(path, address)):
        print_message(f"warning: {address} is an alias too: its mail goes where that leads, and not to this mailbox")
    print(f"{users.add(path, address, _password(password_stdin), quota)} added to {path}")  # noqa: T201


@user_app.command("passwd")
def user_passwd(
    address: AddressArgument,
    config: ConfigOption = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
) -> None:
    """Change the password of a mailbox."""
    from eilpost import configuration, users, wiring

    path = wiring.directory_path(configuration.load_plan(config))
    users.check_exists(path, address)
    print(f"password of {users.change_password(path, address, _password(password_stdin))} changed")  # noqa: T201


@user_app.command("list")
def user_list(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the mailboxes."""
    from dataclasses import asdict

    from eilpost import configuration, users, wiring

    listed = users.list_users(wiring.directory_path(configuration.load_plan(config)))
    if json:
        print_json([asdict(user) for user in listed])
        return
    for user in listed:
        notes = [*([] if user.can_log_in else ["cannot log in"]), *([f"quota {user.quota}"] if user.quota else [])]
        also = f"also {', '.join(user.aliases)}" if user.aliases else ""
        print("  ".join(part for part in (user.address, ", ".join(notes), also) if part))  # noqa: T201


@app.command()
def version() -> None:
    """Print the version."""
    import platform

    from eilpost import __version__

    print(f"eilpost {__version__} (Python {platform.python_version()})")  # noqa: T201


def _with_history(config: Path | None, read: Callable[[HistoryLog], Coroutine[Any, Any, T]], tenant: str = "") -> T:
    from eilpost import configuration, tenants
    from mail.log import LogNotAuthorized, LogUnavailable

    log = tenants.open_history(configuration.load_plan(config).for_tenant(tenant))
    try:
        return run(read(log))
    except LogNotAuthorized as error:
        fail(str(error), EXIT_UNUSABLE)
    except LogUnavailable as error:
        fail(f"{error}: ask again in ten seconds, or see `eilpost doctor`", EXIT_UNUSABLE)


def _password(from_stdin: bool) -> str:
    """A new password, asked for twice without echo, or the first line of stdin."""
    if from_stdin:
        password = _first_line()
    else:
        if not sys.stdin.isatty():
            fail("no terminal to ask for the password; use --password-stdin", EXIT_UNUSABLE)
        import getpass

        password = getpass.getpass("New password: ")
        if getpass.getpass("Again: ") != password:
            fail("the two passwords differ", EXIT_UNUSABLE)
    if not password:
        fail("the password is empty", EXIT_UNUSABLE)
    return password


def _first_line() -> str:
    """The first line of stdin. A password is UTF-8, whatever the locale: it has to match what a mail client sends."""
    stream = getattr(sys.stdin, "buffer", None)
    try:
        line: str = stream.readline().decode() if stream is not None else sys.stdin.readline()
    except UnicodeDecodeError:
        fail("the password is not UTF-8", EXIT_UNUSABLE)
    return line.rstrip("\r\n")
