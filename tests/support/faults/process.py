"""`python -m tests.support.faults.process ROLE --config FILE`: the role as `eilpost ROLE` runs it, with points to be
hit at.

The folder of FILE is where a test arms it. Everything else is the product's: this only wraps some methods before the
command line takes over.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eilpost.cli import main
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
