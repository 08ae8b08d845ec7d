"""Structured logging: one line per event on stderr, as JSON or as text.

Modules use `logger = structlog.get_logger()`. Log records of libraries (`logging`) are written in the same form, from
WARNING on; those of `_NOISY_LIBRARIES` only at debug. A traceback is a field of its line; fields with the value None
are omitted.
"""

from __future__ import annotations

import atexit
import logging
import sys
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog

from mail.line_writer import LineWriter
from mail.printable import escape, escape_json

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "text")
# aiokafka logs errors that it recovers from (a rebalance, a broker that moves). It also raises those it cannot recover
# from, and eilpost logs them then.
_NOISY_LIBRARIES = ("aiokafka",)

_DISABLED = logging.CRITICAL + 1

_FLUSH_SECONDS = 1.0  # at the end of the process

_Event = MutableMapping[str, Any]

_writer: LineWriter | None = None  # of this process's log lines


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Set up the logs of this process. `level` is one of LEVELS, `format` one of FORMATS."""
    out: TextIO | None = sys.stderr if stream is None else stream
    if out is None:  # Python's sys.stderr when it was started with 2>&-
        disable()
        return
    as_text = format == "text" or (format == "auto" and out.isatty())
    number = getattr(logging, level.upper())
    processor = _to_text if as_text else _to_json  # a chain of small processors made a line a third slower
    writer = _start_writer(
        out, lambda count: processor(None, "warning", {"event": "log lines dropped", "lines": count})
    )
    structlog.configure(
        processors=[processor],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_names: _LineLogger(writer),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_StructlogHandler()]
    root.setLevel(logging.DEBUG if level == "debug" else max(number, logging.WARNING))
    # `mail.log` is aiosmtpd's logger, not our package; it logs every command at INFO, as eilpost does itself.
    for name in ("mail.log", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(number, logging.WARNING))
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" else _DISABLED)


def _start_writer(out: TextIO, format_dropped: Callable[[int], bytes]) -> LineWriter:
    from mail.telemetry.runtime import LOG_LINES_DROPPED  # commands do not need it

    writer = LineWriter(getattr(out.buffer, "raw", out.buffer), format_dropped, LOG_LINES_DROPPED.inc)
    _set_writer(writer)
    return writer


def _set_writer(writer: LineWriter | None) -> None:
    global _writer
    if _writer is not None:
        _writer.close()
    _writer = writer


@atexit.register
def flush() -> None:
    """Wait until the lines are written; for at most a second, because nobody may read them."""
    if _writer is not None:
        _writer.flush(_FLUSH_SECONDS)


def print_line(text: str) -> None:
    """Print a line on stderr, after the log lines and with their limits."""
    if _writer is not None:
        _writer.write(text.encode("utf-8", "backslashreplace"))
        flush()
    else:
        with suppress(OSError):  # closed pipe or full disk
            print(text, file=sys.stderr, flush=True)  # noqa: T201


class _LineLogger:
    """The logger of structlog: passes each line to the writer."""

    def __init__(self, writer: LineWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write


def disable() -> None:
    """Log nothing: for CLI commands, which print their errors themselves, and for a closed stderr."""
    _set_writer(None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]


class _StructlogHandler(logging.Handler):
    """Passes log records of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_debug = record.levelno < logging.INFO or record.name.partition(".")[0] in _NOISY_LIBRARIES
            name = "debug" if is_debug else record.levelname.lower()
            write = getattr(structlog.get_logger(), name, structlog.get_logger().error)
            write(
                record.getMessage(), library=record.name, **({"exc_info": record.exc_info} if record.exc_info else {})
            )
        except Exception:  # a logging error must not reach the caller
            self.handleError(record)


def _with_traceback(event: _Event) -> _Event:
    """The event with `exc_info`, if any, as the field `traceback`."""
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
        data = orjson.dumps(line, default=str, option=option)
    except TypeError:  # a file name that is not UTF-8, a number beyond 64 bits
        plain = {
            key: value if isinstance(value, datetime) else str(value).encode("utf-8", "backslashreplace").decode()
            for key, value in line.items()
        }
        data = orjson.dumps(plain, option=option)
    return escape_json(data)


def _to_text(_logger: Any, method: str, event: _Event) -> bytes:
    time, name = datetime.now().astimezone(), event.pop("event")
    fields = " ".join(
        f"{key}={_format_value(value)}" for key, value in _with_traceback(event).items() if value is not None
    )
    line = f"{time:%H:%M:%S.}{time.microsecond // 1000:03d} {method:7} {escape(str(name))} {fields}"
    return line.rstrip().encode("utf-8", "backslashreplace")


def _format_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format_value, value)) or "''"
    text = escape(str(value))
    return repr(text) if " " in text or not text else text
