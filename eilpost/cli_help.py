"""`eilpost help`, and the examples in the help of the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eilpost.terminal import EXIT_UNUSABLE, fail


def examples(*lines: str) -> str:
    """The end of a command's help; `\\b` keeps click from joining the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def register(app: typer.Typer) -> None:
    app.command("help", epilog=examples("eilpost help", "eilpost help trace", "eilpost help user add"))(help_command)


def help_command(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command, like user add.")
    ] = None,
) -> None:
    """Show the help of eilpost or of a command."""
    shown: Any = context.find_root()
    for name in command or ():
        found = getattr(shown.command, "commands", {}).get(name)
        if found is None:
            fail(f"there is no command {' '.join(command or ())!r}; see `eilpost help`", EXIT_UNUSABLE)
        shown = type(shown)(found, info_name=name, parent=shown)
    print(shown.get_help())  # noqa: T201
