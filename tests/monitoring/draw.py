"""Dashboard pictures for the documentation: `python -m tests.monitoring.draw` (about six minutes).

Runs the tests' pipeline for five minutes with a short broker outage and writes docs/images/dashboard-*.png.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.monitoring.pipeline import Recording, record
from tests.monitoring.queries import boards
from tests.monitoring.renderer import Span, draw
from tests.monitoring.rules import ROOT

IMAGES = ROOT / "docs" / "images"


def draw_all(recording: Recording, folder: Path = IMAGES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, board in boards().items():
        file = folder / f"dashboard-{name}.png"
        draw(board, recording.prometheus, Span(recording.begin, recording.end), file)
        print(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--per-second", type=float, default=6.0, help="messages")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="eilpost-pictures-") as work,
        record(Path(work), seconds=options.seconds, per_second=options.per_second, outage=True) as made,
    ):
        draw_all(made)
