"""`python -m tests.support.faults.process ROLE --config FILE`: `eilpost ROLE` with fault points installed.

A test arms points in the folder of FILE. Some product methods are wrapped before the command line runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eilpost.entry_point import main
from tests.support.faults.network import Network
from tests.support.faults.points import INSTALL, FaultPoints


def run() -> None:
    role, config = sys.argv[1], Path(sys.argv[sys.argv.index("--config") + 1])
    if role in INSTALL:
        network = Network()
        network.install()
        INSTALL[role](FaultPoints(config.parent, network.cut))
    main()


if __name__ == "__main__":
    run()
