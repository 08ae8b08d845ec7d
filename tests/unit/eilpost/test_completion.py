"""Shell completion and man pages are made from the commands' help texts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from eilpost import completion
from eilpost.cli import app

ROOT: Any = typer.main.get_command(app)


def _complete(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    script = folder / "eilpost.bash"
    script.write_text(completion.script(ROOT, "bash"))
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"""
set -eu
source '{script}'
COMP_WORDS=(eilpost {quoted}) COMP_CWORD={len(words)}
_eilpost
printf '%s\\n' ${{COMPREPLY[@]+"${{COMPREPLY[@]}}"}}
"""
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], {"trace"}),
        (["user", ""], {"add", "passwd", "rm", "list", "-h", "--help"}),
        (["user", "add", "a@example.test", "--q"], {"--quota"}),
        (["trace", "--config", "file", "--f"], {"--follow"}),
        (["trace", "--config", ""], set()),  # file names, by `complete -o default`
        (["move", "--no"], {"--no-history"}),
        (["nonsense", "--ver"], {"--version"}),
        (["help", "qu"], {"queue"}),
        (["completion", "b"], {"bash"}),
        (["completion", ""], {"bash", "zsh", "fish", "-h", "--help"}),
    ],
)
def test_bash_completes_commands_and_options(tmp_path: Path, words: list[str], offered: set[str]) -> None:
    assert _complete(tmp_path, *words) == offered


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_and_option_is_completed(shell: str) -> None:
    script = completion.script(ROOT, shell)
    for path, command in completion.commands(ROOT):
        assert " ".join(path) in script
        options = (line for line in command.params if line.param_type_name == "option")
        for name in (name for line in options for name in (*line.opts, *line.secondary_opts)):
            fish = f" -l {name[2:]} " if name.startswith("--") else f" -s {name[1:]} "
            assert (fish if shell == "fish" else name) in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=30)


def test_no_option_takes_a_value_in_one_command_and_none_in_another() -> None:
    """The scripts know the options that take a value by name only."""
    flags, valued = set(), set()
    for _, command in completion.commands(ROOT):
        for page in (page for page in command.params if page.param_type_name == "option"):
            (flags if page.is_flag else valued).update((*page.opts, *page.secondary_opts))
    assert not flags & valued


def test_every_command_has_a_man_page() -> None:
    pages = dict(completion.man_pages(ROOT))
    assert set(pages) == {f"{'-'.join(('eilpost', *path))}.1" for path, _ in completion.commands(ROOT)}
    page = pages["eilpost-user-add.1"]
    assert page.startswith('.TH "EILPOST-USER-ADD" 1')
    assert ".SH SYNOPSIS\neilpost user add [OPTIONS] ADDRESS\n" in page
    assert ".SH EXAMPLES\n.nf\neilpost user add carol@example.test \\-\\-quota 2GiB\n" in page
    for text in pages.values():
        for name in re.findall(r"See (\S+)\(1\)", text):
            assert f"{name.replace(chr(92), '')}.1" in pages


def test_man_pages_have_no_formatting_errors() -> None:
    if not shutil.which("groff"):
        return
    for name, text in completion.man_pages(ROOT):
        result = subprocess.run(
            ["groff", "-man", "-Tascii", "-ww"], input=text, capture_output=True, text=True, timeout=30, check=True
        )
        assert result.stderr == "", name
