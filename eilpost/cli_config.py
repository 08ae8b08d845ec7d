"""`eilpost config`: show the settings and their sources, check them."""

from __future__ import annotations

from typing import Annotated

import typer

from eilpost.cli_help import examples
from eilpost.terminal import ConfigOption, JsonOption, command_group, print_json, print_message

config_app = command_group("Show and check the configuration.")


@config_app.command("show", epilog=examples("eilpost config show", "eilpost config show --defaults"))
def config_show(
    config: ConfigOption = None,
    json: JsonOption = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Show every key with its default and its meaning.")
    ] = False,
) -> None:
    """Show the effective settings and their sources."""
    from eilpost import configuration
    from mail import settings_text

    if defaults:
        if json:
            print_json(settings_text.default_tables())
        else:
            print(settings_text.default_toml(), end="")  # noqa: T201
        return
    settings = configuration.effective_settings(config)
    print_json(settings) if json else print(configuration.as_toml(settings))  # noqa: T201


@config_app.command("check", epilog=examples("eilpost config check --config /etc/eilpost/eilpost.toml"))
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration and the directory file."""
    from eilpost import configuration, wiring
    from eilpost.doctor.directory_warnings import directory_counts, directory_warnings
    from mail.directory.file import load

    process_config = configuration.load_process_config(config)

    path = wiring.directory_path(process_config)
    snapshot, _status = load(path)
    for warning in directory_warnings(snapshot, path):
        print_message(f"warning: {warning.text}; {warning.advice[0]}")
    print(f"{configuration.find(config) or 'environment'}: ok; {directory_counts(snapshot)}")  # noqa: T201
