"""Asserts of the shared suites explain themselves like those of a test file."""

import pytest

pytest.register_assert_rewrite("tests.contract.log_contract")
