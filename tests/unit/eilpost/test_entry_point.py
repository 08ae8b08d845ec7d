"""Signals to a command before, during and after its work: an exit status and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.builders import records as samples
from tests.support.servers import supervised
from tests.support.servers.eilpost_process import directory_toml

pytestmark = pytest.mark.slow

# Stands for a module whose import takes long.
_SLOW_MODULE = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
_AS_PID_1 = "import os; os.getpid = lambda: 1; from eilpost.entry_point import main; main()"


@contextmanager
def _process(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EILPOST_")}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=supervised.group(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _importing(folder: Path, module: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """The process while it imports `module`."""
    (folder / f"{module}.py").write_text(_SLOW_MODULE)
    with _process(folder, *command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        yield process


def _interrupt(process: subprocess.Popen[str], count: int = 3) -> tuple[int, str]:
    """Send SIGINT `count` times; returns the exit status, as a shell shows it, and stderr."""
    for _ in range(count):
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    status = process.returncode
    return status if status >= 0 else 128 - status, err.strip()  # killed: the interpreter had removed its handlers


def test_sigterm_during_the_imports_ends_pid_1(tmp_path: Path) -> None:
    with _importing(tmp_path, "typer", "-c", _AS_PID_1, "up") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", ["queue", "up"])
def test_interrupts_during_the_imports_print_nothing(tmp_path: Path, command: str) -> None:
    with _importing(tmp_path, "typer", "-m", "eilpost", command) as process:
        assert _interrupt(process) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
def test_reload_during_the_imports_of_a_server_does_not_end_it(tmp_path: Path, number: signal.Signals) -> None:
    with _importing(tmp_path, "typer", "-m", "eilpost", "router") as process:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_interrupts_of_a_command_print_nothing(tmp_path: Path, count: int) -> None:
    (tmp_path / "eilpost.toml").touch()
    (tmp_path / "directory.toml").write_text(directory_toml())
    with _importing(tmp_path, "argon2", "-m", "eilpost", "user", "list") as process:
        assert _interrupt(process, count) == (130, "")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_interrupts_of_an_asynchronous_command_print_nothing(home: Path, log: Path, count: int) -> None:
    with _process(home, "-m", "eilpost", "trace", samples.queue_id(1), "--follow") as process:
        assert process.stdout is not None
        while "now" not in process.stdout.readline():
            pass
        assert _interrupt(process, count) == (130, "")
