"""Shell completion scripts and man pages, made from the commands' own help texts.

Commands are known by their path, like `("user", "add")`. `Any` stands for click's commands, which typer has as a copy
or takes from the installed click.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from eilpost import __version__

SHELLS = ("bash", "zsh", "fish")

_Path = tuple[str, ...]


def commands(command: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Every command and group below `command`, itself first."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def script(root: Any, shell: str) -> str:
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](dict(commands(root)))


def man_pages(root: Any) -> Iterator[tuple[str, str]]:
    """(File name, roff text) of each page: `eilpost.1`, `eilpost-user-add.1`, ..."""
    for path, command in commands(root):
        yield f"{'-'.join(('eilpost', *path))}.1", _man_page(path, command)


def _names(tree: dict[_Path, Any], path: _Path) -> list[tuple[str, str]]:
    """The words that may follow a command: subcommands, known arguments and options, with their meaning."""
    command = tree[path]
    parent = tree[()] if path == ("help",) else command
    words = [(name, child.get_short_help_str(100)) for name, child in getattr(parent, "commands", {}).items()]
    if path == ("completion",):
        words += [(shell, f"The script of {shell}.") for shell in SHELLS]
    words += [
        (name, option.help or "") for option in _options(command) for name in (*option.opts, *option.secondary_opts)
    ]
    return [*words, ("-h", "Show this message and exit."), ("--help", "Show this message and exit.")]


def _options(command: Any) -> list[Any]:
    return [option for option in command.params if option.param_type_name == "option" and not option.hidden]


def _with_value(tree: dict[_Path, Any]) -> list[str]:
    """The options that a value follows."""
    options = (option for command in tree.values() for option in _options(command) if not option.is_flag)
    return sorted({name for option in options for name in option.opts})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _cases(tree: dict[_Path, Any]) -> str:
    """The paths as shell patterns, each with a space before every word."""
    return "|".join(_quoted("".join(f" {name}" for name in path)) for path in tree if path)


def _bash(tree: dict[_Path, Any]) -> str:
    cases = "\n".join(
        f"        {_quoted(''.join(f' {name}' for name in path))}) words={_quoted(' '.join(words))} ;;"
        for path, words in ((path, dict(_names(tree, path))) for path in tree)
    )
    return f"""\
# bash completion of eilpost {__version__}: source <(eilpost completion bash)
_eilpost() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} path="" words="" number
    for ((number = 1; number < COMP_CWORD; number++)); do
        case "$path ${{COMP_WORDS[number]}}" in
        {_cases(tree)}) path+=" ${{COMP_WORDS[number]}}" ;;
        esac
    done
    COMPREPLY=()
    case "${{COMP_WORDS[COMP_CWORD - 1]}}" in
        {"|".join(_with_value(tree))}) return ;;
    esac
    case "$path" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _eilpost eilpost
"""


def _zsh(tree: dict[_Path, Any]) -> str:
    def array(path: _Path, *, is_option: bool) -> str:
        words = [word for word in _names(tree, path) if word[0].startswith("-") is is_option]
        return " ".join(_quoted(f"{name}:{text}") for name, text in words)

    cases = "\n".join(
        f"        ({_quoted(''.join(f' {name}' for name in path))})\n"
        f"            names=({array(path, is_option=False)})\n"
        f"            options=({array(path, is_option=True)}) ;;"
        for path in tree
    )
    return f"""\
#compdef eilpost
# zsh completion of eilpost {__version__}: eilpost completion zsh > ~/.zfunc/_eilpost, with ~/.zfunc in fpath
_eilpost() {{
    local place="" word
    local -a names options
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$place $word" in
        ({_cases(tree)}) place+=" $word" ;;
        esac
    done
    case "${{words[CURRENT-1]}}" in
        ({"|".join(_with_value(tree))}) _files; return ;;
    esac
    case "$place" in
{cases}
    esac
    if [[ "${{words[CURRENT]}}" == -* ]]; then
        _describe -o option options
    elif (( $#names )); then
        _describe command names
    else
        _files
    fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _eilpost "$@"
else
    compdef _eilpost eilpost
fi
"""


def _fish(tree: dict[_Path, Any]) -> str:
    lines = [
        f"# fish completion of eilpost {__version__}: eilpost completion fish | source",
        "function __eilpost_path",
        "    set -l place eilpost",
        "    for word in (commandline -opc)[2..-1]",
        '        switch "$place $word"',
        f"            case {' '.join(_quoted(' '.join(('eilpost', *path))) for path in tree if path)}",
        '                set place "$place $word"',
        "        end",
        "    end",
        "    echo $place",
        "end",
    ]
    values = _with_value(tree)
    for path in tree:
        condition = f"""-n 'test (__eilpost_path) = "{" ".join(("eilpost", *path))}"'"""
        for name, text in _names(tree, path):
            if name.startswith("--"):
                argument = f"-l {name[2:]}"
            elif name.startswith("-"):
                argument = f"-s {name[1:]}"
            else:
                argument = f"-f -a {name}"
            value = " -r" if name in values else ""
            lines.append(f"complete -c eilpost {condition} {argument}{value} -d {_quoted(text)}")
    return "\n".join(lines) + "\n"


def _man_page(path: _Path, command: Any) -> str:
    name = "-".join(("eilpost", *path))
    options, children = _options(command), getattr(command, "commands", {})
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = ["eilpost", *path, *("[OPTIONS]" for _ in options[:1]), *(str(argument.metavar) for argument in arguments)]
    notes, _, examples = (command.epilog or "").partition("Examples:\n")
    lines = [
        f'.TH "{name.upper()}" 1 "" "eilpost {__version__}" "eilpost"',
        ".SH NAME",
        _roff(f"{name} - {command.get_short_help_str(100).rstrip('.')}"),
        ".SH SYNOPSIS",
        _roff(" ".join([*usage, *(["COMMAND ..."] if children else [])])),
        ".SH DESCRIPTION",
        _roff(_one_line(command.help)),
        *_list_section(
            "COMMANDS",
            [(child, f"{children[child].get_short_help_str(100)} See {name}-{child}(1).") for child in children],
        ),
        *_list_section(
            "OPTIONS",
            [(str(argument.metavar), _one_line(argument.help)) for argument in arguments]
            + [(_option_names(option), _one_line(option.help)) for option in options],
        ),
    ]
    if _one_line(notes):
        lines += [".SH NOTES", _roff(_one_line(notes))]
    if examples:
        lines += [
            ".SH EXAMPLES",
            ".nf",
            *(_roff(line.strip()) for line in examples.splitlines() if line.strip()),
            ".fi",
        ]
    return "\n".join(lines) + "\n"


def _list_section(title: str, entries: list[tuple[str, str]]) -> list[str]:
    """A section of names and their meaning; nothing without entries."""
    lines = [line for name, text in entries for line in (".TP", rf"\fB{_roff(name)}\fR", _roff(text))]
    return [f".SH {title}", *lines] if lines else []


def _option_names(option: Any) -> str:
    return ", ".join((*option.opts, *option.secondary_opts)) + ("" if option.is_flag else f" {option.metavar or 'N'}")


def _one_line(text: str | None) -> str:
    return re.sub(r"[\s\b]+", " ", text or "").strip()


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
