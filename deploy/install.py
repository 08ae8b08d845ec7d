"""`pip install` with one line that says how far it is; what went wrong comes out as pip says it.

`make setup` runs it with the python of .venv, before anything is installed there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path


def main(lock: Path) -> int:
    """Install what `lock` names; pip's exit status."""
    total = len(re.findall(r"^\S+==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--require-hashes",
        "-r",
        str(lock),
    ]
    begun, count, is_seen = time.monotonic(), 0, sys.stderr.isatty()

    def say(text: str) -> None:
        if is_seen:
            print(f"\r  {text:<76.76}", end="", file=sys.stderr, flush=True)
        elif count % 20 == 1:
            print(f"  {text}", file=sys.stderr, flush=True)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if line.startswith("Ignoring "):  # not for this system
                total -= 1
            elif line.startswith("Collecting "):
                count += 1
                say(f"package {count} of {total}: {line.split()[1].partition('=')[0]}")
            elif line.startswith("Installing collected"):
                count = 1
                say(f"installing {total} packages ...")
    count = 1
    say("could not be set up:" if pip.returncode else f"{total} packages in {time.monotonic() - begun:.0f} s")
    if is_seen:
        print(file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
