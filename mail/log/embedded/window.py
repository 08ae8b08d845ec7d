"""The window through which other processes of this machine look into a running log: a socket beside the database.

Two sides: `Window` serves in the process that holds the lock, `EmbeddedHistory` asks (the commands `trace`, `queue`);
when no process holds the lock, it opens the database itself, under the lock. Read-only, for this user only (0600), few
clients at a time, each under deadlines, each answer in slices. Wire: one line of JSON asks; frames come back, each
behind its length; length 0 ends an answer, the highest bit marks an error's text. Next: `eilpost/trace.py`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from struct import Struct

import orjson
import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.embedded.history import About, Historian, Question, Slice, slice_of
from mail.log.embedded.lock import DirectoryLock
from mail.log.embedded.store import WHAT_TO_DO, Store

log = structlog.get_logger()

_LENGTH = Struct(">I")
_ERROR = 1 << 31
_CLIENTS_MAX = 8
_QUESTION_BYTES = 1024
_PATIENCE_SECONDS = 30.0
_NAME_BYTES_MAX = 100  # sun_path has 104 bytes on macOS, 108 on Linux


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits into sun_path, however long the directory's is."""
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


class Window:
    """Serves questions from `frames`, an answer of the running log."""

    def __init__(self, database: Path, frames: Callable[[Question], AsyncIterator[bytes]]) -> None:
        self._path = socket_path(database)
        self._frames = frames
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; when that cannot be, say so and do without: mail does not depend on it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # left by a process that was killed; the lock is ours
            os.fchmod(listener.fileno(), 0o600)  # Linux: the mode the name is made with
            with _address(self._path) as name:
                listener.bind(name)
            os.chmod(self._path, 0o600)
            listener.listen(_CLIENTS_MAX)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._welcome, sock=listener, limit=_QUESTION_BYTES)
        except OSError as error:
            listener.close()
            log.warning("trace and queue cannot look into the running log", path=str(self._path), reason=str(error))

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > _CLIENTS_MAX:
                _tell(writer, "too many look into this log at the moment; try again")
            else:
                await self._answer(reader, writer)
            await asyncio.wait_for(writer.drain(), _PATIENCE_SECONDS)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            return  # the client went away, dawdles, or does not speak our words
        except asyncio.CancelledError:
            return  # the log is being closed
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.wait_for(reader.readline(), _PATIENCE_SECONDS)
        asked = orjson.loads(line)
        if not isinstance(asked, dict):
            return
        question = Question(About(str(asked.get("about"))), str(asked.get("queue_id", "")))
        try:
            async for frame in self._frames(question):
                writer.write(_LENGTH.pack(len(frame)))
                writer.write(frame)
                await asyncio.wait_for(writer.drain(), _PATIENCE_SECONDS)
        except (LogUnavailable, LogUnusable) as error:
            _tell(writer, str(error))
            return
        writer.write(_LENGTH.pack(0))


def _tell(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(_LENGTH.pack(_ERROR | len(data)) + data)


class EmbeddedHistory(Historian):
    """HistoryLog on the log at `path`, whether a process runs it or not. Raises LogUnusable when there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.at_rest = False  # the last answer came from a log that no process runs

    def where(self) -> str:
        return f"the log at {self._path}"

    async def is_served(self) -> bool:
        """Whether a process runs the log and lets us look into it. Raises LogUnusable for a stranger's."""
        connection = await self._connect()
        if connection is not None:
            connection[1].close()
        return connection is not None

    async def frames(self, question: Question) -> AsyncIterator[bytes]:
        if not await asyncio.to_thread(self._path.exists):
            raise LogUnusable(f"there is no log at {self._path}: eilpost has not run there yet, or log.url is another")
        source = await self._open()
        async with aclosing(source(question)) as answer:
            async for frame in answer:
                yield frame

    async def _open(self) -> Callable[[Question], AsyncGenerator[bytes, None]]:
        for attempt in range(20):
            connection = await self._connect()
            self.at_rest = connection is None
            if connection is not None:
                return partial(_over, *connection)
            try:
                lock = await asyncio.to_thread(DirectoryLock, self._path)
            except LogUnusable:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.1)  # it is starting or ending
                continue
            return partial(self._alone, lock)
        raise AssertionError("unreachable")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            with _address(socket_path(self._path)) as name:
                return await asyncio.open_unix_connection(name)
        except PermissionError:
            raise LogUnusable(
                f"{socket_path(self._path)} belongs to another user: ask as the user eilpost runs as"
            ) from None
        except OSError:
            return None

    async def _alone(self, lock: DirectoryLock, question: Question) -> AsyncGenerator[bytes, None]:
        """Nobody runs it: read the database ourselves, under the lock."""
        try:
            try:
                store = await asyncio.to_thread(Store, self._path, None)
            except (sqlite3.Error, OSError) as error:
                raise LogUnusable(f"{self._path} cannot be read as a log: {error}") from None
            try:
                after: int | str | None = None
                while True:
                    part = await self._slice(store, question, after)
                    for frame in part.frames:
                        yield frame
                    after = part.after
                    if after is None:
                        return
            finally:
                store.close()
        finally:
            lock.release()

    async def _slice(self, store: Store, question: Question, after: int | str | None) -> Slice:
        try:
            return await asyncio.to_thread(slice_of, store, question, after)
        except sqlite3.Error as error:
            raise LogUnusable(f"{self._path} cannot be read as a log: {error}: {WHAT_TO_DO}") from None


async def _over(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Question
) -> AsyncGenerator[bytes, None]:
    """Ask the process that runs the log."""
    try:
        writer.write(orjson.dumps({"about": question.about.value, "queue_id": question.queue_id}) + b"\n")
        while True:
            (length,) = _LENGTH.unpack(await asyncio.wait_for(reader.readexactly(_LENGTH.size), _PATIENCE_SECONDS))
            if length == 0:
                return
            data = await asyncio.wait_for(reader.readexactly(length & ~_ERROR), _PATIENCE_SECONDS)
            if length & _ERROR:
                raise LogUnusable(data.decode("utf-8", "replace"))
            yield data
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise LogUnusable("the eilpost process that runs this log ended or does not answer: try again") from error
    finally:
        writer.close()
