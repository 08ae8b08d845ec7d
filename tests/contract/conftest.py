"""Assertion rewriting for the shared contract suites."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contract.log_contract")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of a new embedded log."""
    return tmp_path / "log.db"
