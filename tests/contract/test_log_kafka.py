"""The log contract on a real Kafka of one node, unchanged."""

from __future__ import annotations

import pytest

from tests.contract.log_contract import Harness, LogContract
from tests.support.kafka_log import KafkaHarness

pytestmark = pytest.mark.kafka


@pytest.fixture
def harness(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> Harness:
    return KafkaHarness(kafka_bootstrap, monkeypatch)


class TestLogOnKafka(LogContract):
    """Every test of the contract."""
