"""Every fuzz target with the inputs of its corpus, and a minute of new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import corpora
from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS

_FUZZ_SECONDS = 60


@pytest.mark.parametrize("target", TARGETS)
def test_target_accepts_its_corpus(target: str) -> None:
    inputs = corpora.inputs(target)
    assert len(inputs) >= 8
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.atheris
@pytest.mark.slow
@pytest.mark.timeout(_FUZZ_SECONDS + 240)
@pytest.mark.parametrize("target", TARGETS)
def test_no_new_input_fails_within_a_minute(target: str, tmp_path: Path) -> None:
    run = fuzz(target, _FUZZ_SECONDS, tmp_path / target)
    assert run.failing is None, f"{run.failing!r}\n{run.output[-4000:]}"
    assert run.executions > 100
