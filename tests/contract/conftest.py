"""Asserts of the shared suites explain themselves like those of a test file."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contract.log_contract")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an embedded log may be made."""
    return tmp_path / "log.db"
