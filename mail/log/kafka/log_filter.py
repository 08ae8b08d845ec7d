"""Errors that aiokafka leaves behind for nobody: said at debug level, where asyncio would say them as errors of ours.

Whoever waited has had the error already, or has given up; a future nobody waits for any more (a batch of a fenced
transaction, a commit on a connection that went) then complains as it is collected, and so does a task of a producer
that was ended while a broker hung. Never hides any other error: only such as are aiokafka's own.
"""

from __future__ import annotations

import logging

import structlog
from aiokafka.errors import KafkaError

logger = structlog.get_logger()


def _is_not_from_aiokafka(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    message = record.getMessage()
    if message.startswith("Task was destroyed but it is pending") and "/aiokafka/" in message:
        logger.debug("left behind by aiokafka", error=" ".join(message.split()))
        return False
    if message.startswith("Unclosed AIOKafka"):  # one whose start failed or was given up: its tasks are ended by us
        logger.debug("left behind by aiokafka", error=message.partition("\n")[0])
        return False
    if not isinstance(error, KafkaError) or "exception was never retrieved" not in message:
        return True
    logger.debug("left behind by aiokafka", error=f"{type(error).__name__}: {error}")
    return False


def install_log_filter() -> None:
    """For this process. Idempotent."""
    logging.getLogger("asyncio").addFilter(_is_not_from_aiokafka)
