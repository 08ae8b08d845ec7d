"""A real S3-compatible server (versitygw) with its own directory and port; a bucket is a folder.

Built once with Go before the first test that needs it, and stopped by pid. Used by the contract suite, the journeys and
`tests.bench.spool`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mail.settings import SpoolSettings
from mail.spool.bucket_url import parse_bucket
from mail.spool.object_spool import ObjectSpool
from mail.spool.object_store import open_store
from tests.support.golang import GoProgram
from tests.support.servers import supervised
from tests.support.servers.ports import free_port

VERSITYGW = GoProgram("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
why_missing, prepare = VERSITYGW.why_missing, VERSITYGW.prepare

ACCESS_KEY, SECRET_KEY = "eilpost", "eilpost-secret"
BUCKET = "mail"


def object_spool(
    server: ObjectServer, *, prefix: str = "spool", time_limit_seconds: float = 15.0, **over: Any
) -> ObjectSpool:
    """A spool in this store; `over` are settings on top of its own."""
    settings = SpoolSettings(**{**server.settings(prefix), **over})
    bucket = parse_bucket(settings.url)
    return ObjectSpool(open_store(bucket, settings), str(bucket), time_limit_seconds=time_limit_seconds)


class ObjectServer:
    """One running server with one bucket. Port and directory persist across restarts."""

    def __init__(self) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.home = Path(tempfile.mkdtemp(prefix="eilpost-objects-"))
        self.bucket = self.home / "buckets" / BUCKET
        self.bucket.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, prefix: str = "spool") -> dict[str, str | bool]:
        """The section [spool] that uses it."""
        return {
            "url": f"s3://{BUCKET}/{prefix}",
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "allow_http": True,
        }

    def files(self, prefix: str = "spool") -> list[Path]:
        """The objects as files."""
        return sorted(path for path in (self.bucket / prefix).rglob("*") if path.is_file())

    def start(self) -> None:
        """Start and wait for any reply."""
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(VERSITYGW.path),
                    *("--port", f"127.0.0.1:{self.port}", "--keep-alive", "--quiet"),
                    *("posix", "--nometa", str(self.home / "buckets")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                process_group=supervised.group(),
            )
        end = time.monotonic() + 20
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                with contextlib.closing(connection):
                    connection.request("GET", "/")
                    connection.getresponse().read()
                    return
            time.sleep(0.02)
        raise RuntimeError(f"versitygw did not start: {(self.home / 'log').read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL by pid, and wait for its end. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block it accepts connections and does not reply."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # all its threads have stopped
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> ObjectServer:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
