"""Log filter that demotes aiokafka's unretrieved errors to debug level.

Their callers have already received an error or stopped waiting: a batch of a fenced transaction, a commit on a closed
connection, a task of a producer that was aborted while a broker hung. Other errors are not filtered.
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
        logger.debug("unretrieved error of aiokafka", error=" ".join(message.split()))
        return False
    if message.startswith("Unclosed AIOKafka"):  # its start failed, and we cancelled its tasks
        logger.debug("unretrieved error of aiokafka", error=message.partition("\n")[0])
        return False
    if not isinstance(error, KafkaError) or "exception was never retrieved" not in message:
        return True
    logger.debug("unretrieved error of aiokafka", error=f"{type(error).__name__}: {error}")
    return False


def install_log_filter() -> None:
    """Install the filter for this process. Idempotent.
    Upstream: none found. Remove when aiokafka retrieves the errors of its own tasks and futures.
    """
    logging.getLogger("asyncio").addFilter(_is_not_from_aiokafka)
