"""What aiokafka leaves behind is no error of ours; everybody else's is."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from aiokafka.errors import ProducerFenced

from mail.log.kafka.log_filter import install_log_filter


@pytest.mark.parametrize(("error", "said"), [(ProducerFenced(), False), (ValueError("ours"), True)])
async def test_never_retrieved(error: Exception, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    install_log_filter()
    future = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    with caplog.at_level(logging.ERROR, "asyncio"):
        del future
        gc.collect()
    assert ("never retrieved" in caplog.text) is said


def test_other_errors_of_aiokafka_are_said(caplog: pytest.LogCaptureFixture) -> None:
    install_log_filter()
    logging.getLogger("asyncio").error("callback failed", exc_info=ProducerFenced())
    assert "callback failed" in caplog.text


@pytest.mark.parametrize(
    ("where", "said"), [("/lib/aiokafka/producer/sender.py", False), ("/ours/router/shard.py", True)]
)
def test_a_task_that_was_destroyed(where: str, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    install_log_filter()
    logging.getLogger("asyncio").error(
        "Task was destroyed but it is pending!\ntask: <Task pending coro=<x() at %s:1>>", where
    )
    assert ("destroyed" in caplog.text) is said
