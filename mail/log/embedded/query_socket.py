"""Unix socket for read-only queries of a running embedded log.

`QueryServer` runs in the process that holds the lock; `EmbeddedHistory` is the client of `trace` and `queue`, and opens
the database itself, under the lock, when no process holds it. The socket has mode 0600, few clients at a time and a
timeout on every read and write. A request is one line of JSON; the response is length-prefixed frames, ended by length
0, where the highest bit of a length marks an error text.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from struct import Struct

import orjson
import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.embedded.history import HistoryReader, Query, QueryKind, read_page, read_pages
from mail.log.embedded.lock import DirectoryLock
from mail.log.embedded.store import Store, open_error
from mail.tasks import cancel_tasks

logger = structlog.get_logger()

_LENGTH = Struct(">I")
_ERROR = 1 << 31
_CLIENTS_MAX = 8
_QUERY_BYTES_MAX = 1024
_TIMEOUT_SECONDS = 30.0
_READ_BYTES = 1 << 20
_NO_ANSWER = "the eilpost process of this log ended or does not respond: try again"
_NAME_BYTES_MAX = 100  # sun_path has 104 bytes on macOS, 108 on Linux


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits into sun_path, even in a directory with a long name."""
    if len(os.fsencode(path)) <= _NAME_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{directory}/{path.name}"
        if len(os.fsencode(short)) > _NAME_BYTES_MAX or not os.path.isdir(f"/proc/self/fd/{directory}"):
            raise OSError(f"{path} is too long a name for a socket; choose a shorter directory in log.url")
        yield short
    finally:
        os.close(directory)


def socket_path(database: Path) -> Path:
    return database.with_name(database.name + ".sock")


class QueryServer:
    """Serves queries from `pages`, which reads the running log."""

    def __init__(self, database: Path, pages: Callable[[Query], AsyncIterator[Sequence[bytes]]]) -> None:
        self._path = socket_path(database)
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A failure is logged and ignored, because mail does not depend on the socket."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)  # left by a killed process; this process has the lock
            os.fchmod(listener.fileno(), 0o600)  # Linux: the mode that bind gives the file
            with _address(self._path) as name:
                listener.bind(name)
            os.chmod(self._path, 0o600)
            listener.listen(_CLIENTS_MAX)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._handle_client, sock=listener, limit=_QUERY_BYTES_MAX)
        except OSError as error:
            listener.close()
            logger.warning(
                "query socket failed: trace and queue cannot read the running log",
                path=str(self._path),
                error=str(error),
            )

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self._path.unlink(missing_ok=True)
        await cancel_tasks(*self._clients)

    async def _handle_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > _CLIENTS_MAX:
                _write_error(writer, "too many queries of this log at once; try again")
            else:
                await self._answer_query(reader, writer)
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            return  # the client disconnected, timed out or sent an invalid request
        except asyncio.CancelledError:
            return  # the log closes
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer_query(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            request = orjson.loads(await reader.readline())
        if not isinstance(request, dict):
            return
        query = Query(QueryKind(str(request.get("kind"))), str(request.get("queue_id", "")))
        try:
            async for frames in self._pages(query):
                writer.write(b"".join(part for frame in frames for part in (_LENGTH.pack(len(frame)), frame)))
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    await writer.drain()
        except (LogUnavailable, LogUnusable) as error:
            _write_error(writer, str(error))
            return
        writer.write(_LENGTH.pack(0))


def _write_error(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(_LENGTH.pack(_ERROR | len(data)) + data)


class EmbeddedHistory(HistoryReader):
    """HistoryLog on the log at `path`, running or not. Raises LogUnusable when there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.location = f"the log at {self._path}"
        self.is_offline = False  # the last answer came from a log that no process runs

    async def is_running(self) -> bool:
        """Whether a process runs the log and accepts queries. Raises LogUnusable when it runs as another user."""
        connection = await self._connect()
        if connection is not None:
            connection[1].close()
        return connection is not None

    async def pages(self, query: Query) -> AsyncIterator[Sequence[bytes]]:
        if not await asyncio.to_thread(self._path.exists):
            raise LogUnusable(f"there is no log at {self._path}: start eilpost first, or correct log.url")
        source = await self._open_source()
        async with aclosing(source(query)) as answer:
            async for frames in answer:
                yield frames

    async def _open_source(self) -> Callable[[Query], AsyncGenerator[Sequence[bytes], None]]:
        for attempt in range(20):
            connection = await self._connect()
            self.is_offline = connection is None
            if connection is not None:
                return partial(_query_process, *connection)
            try:
                lock = await asyncio.to_thread(DirectoryLock, self._path)
            except LogUnusable:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.1)  # a process is starting or ending
                continue
            return partial(self._query_database, lock)
        raise AssertionError("unreachable")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            with _address(socket_path(self._path)) as name:
                return await asyncio.open_unix_connection(name, limit=_READ_BYTES)
        except PermissionError:
            raise LogUnusable(
                f"{socket_path(self._path)} belongs to another user: run this command as the user of eilpost"
            ) from None
        except OSError:
            return None

    async def _query_database(self, lock: DirectoryLock, query: Query) -> AsyncGenerator[Sequence[bytes], None]:
        """Read the database directly, under the lock."""
        try:
            store = await asyncio.to_thread(Store, self._path, None)
            try:
                async for frames in read_pages(lambda cursor: asyncio.to_thread(read_page, store, query, cursor)):
                    yield frames
            finally:
                store.close()
        except (sqlite3.Error, OSError) as error:
            raise open_error(self._path, error) from None
        finally:
            lock.release()


async def _query_process(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, query: Query
) -> AsyncGenerator[Sequence[bytes], None]:
    """Query the process that runs the log."""
    unread = bytearray()
    try:
        writer.write(orjson.dumps({"kind": query.kind.value, "queue_id": query.queue_id}) + b"\n")
        while True:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                data = await reader.read(_READ_BYTES)
            if not data:
                raise LogUnusable(_NO_ANSWER)
            unread += data
            frames, is_last = _take_frames(unread)
            yield frames
            if is_last:
                return
    except (OSError, TimeoutError) as error:
        raise LogUnusable(_NO_ANSWER) from error
    finally:
        writer.close()


def _take_frames(unread: bytearray) -> tuple[Sequence[bytes], bool]:
    """Remove the complete frames from `unread`; also returns whether the answer ends after them. Raises LogUnusable
    with the text of an error.
    """
    frames: list[bytes] = []
    position = 0
    while position + _LENGTH.size <= len(unread):
        (length,) = _LENGTH.unpack_from(unread, position)
        if length == 0:
            return frames, True
        start = position + _LENGTH.size
        end = start + (length & ~_ERROR)
        if end > len(unread):
            break
        frame = bytes(unread[start:end])
        if length & _ERROR:
            raise LogUnusable(frame.decode("utf-8", "replace"))
        frames.append(frame)
        position = end
    del unread[:position]
    return frames, False
