"""Log filter: unretrieved errors of aiokafka are demoted, all others are logged."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from aiokafka.errors import ProducerFenced

from mail.log.kafka.aiokafka_compat.log_filter import install_log_filter


@pytest.mark.parametrize(("error", "logged"), [(ProducerFenced(), False), (ValueError("ours"), True)])
async def test_unretrieved_errors_of_aiokafka_are_filtered(
    error: Exception, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    install_log_filter()
    future = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    with caplog.at_level(logging.ERROR, "asyncio"):
        del future
        gc.collect()
    assert ("never retrieved" in caplog.text) is logged


def test_other_errors_of_aiokafka_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    install_log_filter()
    logging.getLogger("asyncio").error("callback failed", exc_info=ProducerFenced())
    assert "callback failed" in caplog.text


@pytest.mark.parametrize(
    ("where", "logged"), [("/lib/aiokafka/producer/sender.py", False), ("/ours/router/shard.py", True)]
)
def test_destroyed_tasks_of_aiokafka_are_filtered(where: str, logged: bool, caplog: pytest.LogCaptureFixture) -> None:
    install_log_filter()
    logging.getLogger("asyncio").error(
        "Task was destroyed but it is pending!\ntask: <Task pending coro=<x() at %s:1>>", where
    )
    assert ("destroyed" in caplog.text) is logged
