"""`eilpost user`, `eilpost domain` and `eilpost alias`: the commands that edit the directory file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from eilpost.cli_help import examples
from eilpost.terminal import EXIT_UNUSABLE, ConfigOption, JsonOption, command_group, fail, print_json, print_message

T = TypeVar("T")

user_app = command_group("Add, change, remove and list mailboxes.")
domain_app = command_group("Add, remove and list domains.")
alias_app = command_group("Add, remove and list aliases.")

AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="For example alice@example.test.")]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of standard input.")
]
DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="For example example.test.")]
AliasArgument = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="For example sales@example.test, or @example.test for a catch-all.")
]


def _path(config: Path | None) -> Path:
    from eilpost import configuration, wiring

    return wiring.directory_path(configuration.load_process_config(config))


@user_app.command(
    "add",
    epilog=examples(
        "eilpost user add carol@example.test --quota 2GiB",
        "echo SECRET | eilpost user add carol@example.test --password-stdin",
    ),
)
def user_add(
    address: AddressArgument,
    config: ConfigOption = None,
    password_stdin: PasswordOption = False,
    quota: Annotated[
        str, typer.Option(metavar="SIZE", help='Storage limit, for example "1GiB". Default: no limit.')
    ] = "",
) -> None:
    """Add a mailbox."""
    from eilpost import directory_editor, users
    from mail.units import parse_size

    path = _path(config)
    if quota:
        try:
            parse_size(quota)
        except ValueError as error:
            fail(f"--quota {quota}: {error}", EXIT_UNUSABLE)
    file = directory_editor.read(path)
    if users.is_alias_elsewhere(file, users.check_new(file, address)):
        print_message(
            f"warning: {address} is also an alias: its mail goes to the targets of the alias, not to this mailbox"
        )
    print(f"{users.add(path, address, _password(password_stdin), quota)} added to {path}")  # noqa: T201


@user_app.command("passwd", epilog=examples("eilpost user passwd carol@example.test"))
def user_passwd(address: AddressArgument, config: ConfigOption = None, password_stdin: PasswordOption = False) -> None:
    """Change the password of a mailbox."""
    from eilpost import directory_editor, users

    path = _path(config)
    users.check_exists(directory_editor.read(path), address)
    print(f"password of {users.change_password(path, address, _password(password_stdin))} changed")  # noqa: T201


@user_app.command("list", epilog=examples("eilpost user list", "eilpost user list --json"))
def user_list(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the mailboxes."""
    from eilpost import users

    def line(user: users.UserListing) -> str:
        notes = [*([] if user.can_log_in else ["cannot log in"]), *([f"quota {user.quota}"] if user.quota else [])]
        aliases = f"also {', '.join(user.aliases)}" if user.aliases else ""
        return "  ".join(part for part in (user.address, ", ".join(notes), aliases) if part)

    _print_listings(users.list_users(_path(config)), json, line)


@user_app.command("rm", epilog=examples("eilpost user rm carol@example.test"))
def user_rm(address: AddressArgument, config: ConfigOption = None) -> None:
    """Remove a mailbox from the directory, not its mail."""
    from eilpost import users

    path = _path(config)
    print(f"{users.remove(path, address)} removed from {path}; its mail is not deleted")  # noqa: T201


@domain_app.command(
    "add",
    epilog=examples(
        "eilpost domain add example.test", "eilpost domain add backup.example.test --relay smtp://mail.example.test:25"
    ),
)
def domain_add(
    domain: DomainArgument,
    config: ConfigOption = None,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="The domain's tenant. Default: default.")] = "",
    relay: Annotated[
        str, typer.Option(metavar="URL", help='To smtp://HOST:PORT, lmtp://HOST:PORT or "mx". Default: mailboxes here.')
    ] = "",
) -> None:
    """Add a domain."""
    from eilpost import domains

    path = _path(config)
    print(f"{domains.add_domain(path, domain, tenant=tenant, relay=relay)} added to {path}")  # noqa: T201


@domain_app.command("list", epilog=examples("eilpost domain list", "eilpost domain list --json"))
def domain_list(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the domains."""
    from eilpost import domains

    def line(listing: domains.DomainListing) -> str:
        users = f"users: {listing.users}, aliases: {listing.aliases}"
        return f"{listing.domain}  tenant {listing.tenant}, {f'relayed to {listing.relay}' if listing.relay else users}"

    _print_listings(domains.list_domains(_path(config)), json, line)


@domain_app.command("rm", epilog=examples("eilpost domain rm old.example.test"))
def domain_rm(domain: DomainArgument, config: ConfigOption = None) -> None:
    """Remove a domain that has no users and no aliases."""
    from eilpost import domains

    path = _path(config)
    print(f"{domains.remove_domain(path, domain)} removed from {path}")  # noqa: T201


@alias_app.command(
    "add",
    epilog=examples(
        "eilpost alias add sales@example.test alice@example.test bob@example.test",
        "eilpost alias add @example.test alice@example.test",
    ),
)
def alias_add(
    alias: AliasArgument,
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="Where its mail goes.")],
    config: ConfigOption = None,
) -> None:
    """Add an alias."""
    from eilpost import configuration, directory_editor, domains, users, wiring

    process_config = configuration.load_process_config(config)
    path = wiring.directory_path(process_config)
    depth = process_config.settings.router.max_alias_depth
    print(f"{domains.add_alias(path, alias, targets, depth=depth)} added to {path}")  # noqa: T201
    if users.is_mailbox_diverted(directory_editor.read(path), alias):
        print_message(
            f"warning: {alias} is also a mailbox: its mail goes to the targets of the alias, not to this mailbox"
        )


@alias_app.command("list", epilog=examples("eilpost alias list", "eilpost alias list --json"))
def alias_list(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the aliases."""
    from eilpost import domains

    aliases = domains.list_aliases(_path(config))
    _print_listings(aliases, json, lambda listing: f"{listing.alias} -> {', '.join(listing.targets)}")


@alias_app.command("rm", epilog=examples("eilpost alias rm sales@example.test"))
def alias_rm(alias: AliasArgument, config: ConfigOption = None) -> None:
    """Remove an alias."""
    from eilpost import domains

    path = _path(config)
    print(f"{domains.remove_alias(path, alias)} removed from {path}")  # noqa: T201


def _print_listings(listings: Sequence[T], json: bool, line: Callable[[T], str]) -> None:
    if json:
        print_json(listings)
        return
    for listing in listings:
        print(line(listing))  # noqa: T201


def _password(from_stdin: bool) -> str:
    """A new password, from two prompts without echo or from the first line of stdin."""
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
    """The first line of stdin as UTF-8 whatever the locale, because mail clients send passwords as UTF-8."""
    stream = getattr(sys.stdin, "buffer", None)
    try:
        line: str = stream.readline().decode() if stream is not None else sys.stdin.readline()
    except UnicodeDecodeError:
        fail("the password is not UTF-8", EXIT_UNUSABLE)
    return line.rstrip("\r\n")
