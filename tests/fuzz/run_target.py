"""One target under libFuzzer: `python -m tests.fuzz.run_target TARGET FOLDER [libFuzzer's options]`.

The process ends with status 0 after the time that it got, and with another one at the first input that fails; it
writes that input to the file that `-exact_artifact_path` names.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["mail", "ingress", "router", "delivery", "mailstore"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
