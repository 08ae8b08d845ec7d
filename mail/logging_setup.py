"""Structured logs: one line an event on stderr, JSON for machines or readable text for a terminal.

Everybody else writes `log = structlog.get_logger()` and `log.info("accepted", queue_id=...)`. Levels below the chosen
one cost a call of an empty function. What libraries log through `logging` comes out the same way, from WARNING on;
of those in `_TALKATIVE` at debug only. A traceback is a field of its line, never lines of its own; a field without a
value (None) is left out.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, AnyStr, BinaryIO, Generic, TextIO, cast

import orjson
import structlog

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "text")
# aiokafka calls an error what it mends by itself (a rebalance, a broker that moves), and what it cannot mend it raises
# as well: then we say it, once and with the key.
_NOISY_LIBRARIES = ("aiokafka",)

_DISABLED = logging.CRITICAL + 1

_Event = MutableMapping[str, Any]


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Set up the logs of this process. `level` is one of LEVELS, `format` one of FORMATS."""
    out: TextIO | None = sys.stderr if stream is None else stream
    if out is None:  # Python's sys.stderr when it was started with 2>&-
        disable()
        return
    as_text = format == "text" or (format == "auto" and out.isatty())
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[_to_text if as_text else _to_json],  # one: a chain of small ones cost a third of a line
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=(
            structlog.WriteLoggerFactory(cast("TextIO", _BestEffortStream(out)))
            if as_text
            else structlog.BytesLoggerFactory(cast("BinaryIO", _BestEffortStream(out.buffer)))
        ),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_StructlogHandler()]
    # aiosmtpd logs every command at INFO: ours tell the story, theirs only what went wrong.
    root.setLevel(logging.DEBUG if level == "debug" else max(number, logging.WARNING))
    for name in ("mail.log", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(number, logging.WARNING))
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else _DISABLED)


class _BestEffortStream(Generic[AnyStr]):
    """A stream that drops what cannot be written: a log whose reader is gone or whose disk is full ends no process."""

    def __init__(self, out: IO[AnyStr]) -> None:
        self._out: IO[AnyStr] = out

    def write(self, line: AnyStr) -> None:
        try:
            self._out.write(line)
            self._out.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # nobody will read it; at exit Python writes what is buffered
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._out.fileno())
                os.close(null)

    def flush(self) -> None:
        """Each line is flushed as it is written."""


def disable() -> None:
    """For a command, whose output is its own, and for a closed stderr: nothing is logged.

    A fault of a command is one line on stderr, said by its caller.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]


class _StructlogHandler(logging.Handler):
    """Hands a library's line to ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_debug = record.levelno < logging.INFO or record.name.partition(".")[0] in _NOISY_LIBRARIES
            name = "debug" if is_debug else record.levelname.lower()
            write = getattr(structlog.get_logger(), name, structlog.get_logger().error)
            write(
                record.getMessage(), library=record.name, **({"exc_info": record.exc_info} if record.exc_info else {})
            )
        except Exception:  # a log line never breaks its writer
            self.handleError(record)


def _with_traceback(event: _Event) -> _Event:
    """`exc_info`, if there is one, made a field of the line."""
    exc_info = event.pop("exc_info", None)
    if exc_info is None or exc_info is False:
        return event
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info if isinstance(exc_info, BaseException) else exc_info[1]
    if error is not None:
        event["traceback"] = one_line_traceback(error)
    return event


def one_line_traceback(error: BaseException) -> str:
    """The error and its frames, innermost first, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    calls = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    text = " ".join(f"{type(error).__name__}: {error}".split())
    cause = error.__cause__
    if cause is not None and cause is not error:
        return f"{text} at {calls} caused by {one_line_traceback(cause)}"
    return f"{text} at {calls}"


def _to_json(_logger: Any, method: str, event: _Event) -> bytes:
    if "exc_info" in event:
        event = _with_traceback(event)
    line = {"time": datetime.now(UTC), "level": method, "event": event.pop("event")}
    line.update((key, value) for key, value in event.items() if value is not None)
    option = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(line, default=str, option=option)
    except TypeError:  # a file name that is not UTF-8, a number beyond 64 bits
        plain = {
            key: value if isinstance(value, datetime) else str(value).encode("utf-8", "backslashreplace").decode()
            for key, value in line.items()
        }
        return orjson.dumps(plain, option=option)


def _to_text(_logger: Any, method: str, event: _Event) -> str:
    time, name = datetime.now().astimezone(), event.pop("event")
    fields = " ".join(
        f"{key}={_format_value(value)}" for key, value in _with_traceback(event).items() if value is not None
    )
    line = f"{time:%H:%M:%S.}{time.microsecond // 1000:03d} {method:7} {_escape(str(name))} {fields}"
    return line.rstrip()


def _format_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format_value, value)) or "''"
    text = _escape(str(value))
    return repr(text) if " " in text or not text else text


def _escape(text: str) -> str:
    """Nothing a peer sent moves the cursor of a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
