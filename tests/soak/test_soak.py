"""The soak in a short form: its load, its kills and its page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.soak.__main__ import page
from tests.soak.run import Sample, Soak, soak


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_soak_of_some_seconds_loses_nothing(tmp_path: Path) -> None:
    run = soak(tmp_path, 12, 20, 4)
    assert run.kills == 2
    assert (run.status, run.load["lost"], run.load["damaged"], run.load["refused"]) == (0, 0, 0, 0)
    assert run.load["accepted"] == run.load["delivered"] + run.load["bounced"] > 100
    assert all(sample.tasks > 5 and sample.memory_bytes > 1 << 20 for sample in run.samples)
    assert "0 lost" in page(run, datetime(2026, 1, 1, tzinfo=UTC))


def test_growth_compares_the_last_third_with_the_second() -> None:
    run = Soak(1)
    run.samples = [Sample(n, memory, 10, 1, 1, 0, 0) for n, memory in enumerate((900, 100, 300))]
    assert (run.growth("memory_bytes"), run.growth("open_files"), run.growth("spool_bytes")) == (3.0, 1.0, 1.0)
