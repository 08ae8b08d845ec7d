"""Installer of the packages of a lock file, and of eilpost from this repository, into the .venv of `make`.

`python deploy/install.py LOCK` runs with the Python of .venv. On a terminal it shows the progress in one line; else it
prints only pip's errors.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The shell runs Python, so that the path of .venv may have spaces and any length; pip writes scripts in the same way.
SCRIPT = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
from eilpost.entry_point import main

main()
"""


def main(lock: Path) -> int:
    """Install the packages of `lock`; pip's exit status."""
    total = len(re.findall(r"^\S+==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
    command += ["-r", str(lock)]
    started, count = time.monotonic(), 0

    def print_progress(text: str, end: str = "") -> None:
        if sys.stderr.isatty():
            print(f"\r  {text:<76.76}", end=end, file=sys.stderr, flush=True)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if line.startswith("Ignoring "):  # not for this system
                total -= 1
            elif line.startswith("Collecting "):
                count += 1
                print_progress(f"package {count} of {total}: {line.split()[1].partition('=')[0]}")
            elif line.startswith("Installing collected"):
                print_progress(f"installing {total} packages ...")
    duration = f"{time.monotonic() - started:.0f} s"
    print_progress("pip failed" if pip.returncode else f"{total} packages in {duration}", end="\n")
    return pip.returncode


def install_eilpost() -> None:
    """Make `eilpost` run from this repository, as `pip install -e .` does, without the packages of a build backend."""
    (Path(sysconfig.get_path("purelib")) / "eilpost.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    script = Path(sysconfig.get_path("scripts")) / "eilpost"
    script.write_text(SCRIPT.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)


if __name__ == "__main__":
    if status := main(Path(sys.argv[1])):
        sys.exit(status)
    install_eilpost()
