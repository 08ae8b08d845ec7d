"""A real S3-compatible server (versitygw) next door: own directory and port, a bucket is a folder, nothing global.

It is made once with Go, in a version that is named here, into `$XDG_CACHE_HOME/eilpost/bin`, before the first test that
needs it (two minutes on a machine at rest). It is started in a session of its own and stopped by its pid. Used by the
contract suite, the journeys and `tests.bench.spool`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mail.settings import SpoolSettings
from mail.spool.location import parse_bucket
from mail.spool.objects import ObjectSpool
from mail.spool.stores import open_store
from tests.support import guarded
from tests.support.ports import free_port

VERSION = "v1.8.0"
MODULE = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
OLDEST_GO = (1, 21)  # fetches the Go that the module asks for by itself
BIN = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eilpost" / "bin"
VERSITYGW = BIN / f"versitygw-{VERSION}"

ACCESS_KEY, SECRET_KEY = "eilpost", "eilpost-secret"
BUCKET = "mail"

_failure: list[str] = []


def object_spool(
    server: ObjectServer, *, prefix: str = "spool", time_limit_seconds: float = 15.0, **over: Any
) -> ObjectSpool:
    """A spool in it; `over` are settings on top of its own."""
    settings = SpoolSettings(**{**server.settings(prefix), **over})
    bucket = parse_bucket(settings.url)
    return ObjectSpool(open_store(bucket, settings), str(bucket), time_limit_seconds=time_limit_seconds)


def why_missing() -> str | None:
    """Why no S3-compatible server can be had here, for people; None when it can."""
    if VERSITYGW.exists():
        return None
    if _failure:
        return _failure[0]
    go = shutil.which("go")
    if go is None:
        return "Go is not installed, which makes versitygw (apt-get install golang-go, or https://go.dev/dl)"
    version = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"go([0-9]+)\.([0-9]+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"Go is too old to make versitygw: {version.strip()}; 1.21 or newer is needed (https://go.dev/dl)"
    return None


def prepare() -> None:
    """Make the server if there is none; a failure is what `why_missing` says from then on."""
    if VERSITYGW.exists() or why_missing() is not None:
        return
    BIN.mkdir(parents=True, exist_ok=True)
    print(f"\nMaking versitygw {VERSION} with Go (once, some minutes) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=BIN, prefix="making-") as folder:
        environment = {**os.environ, "GOBIN": folder, "GOTOOLCHAIN": "auto"}  # Debian's says local
        try:
            made = subprocess.run(
                ["go", "install", MODULE], env=environment, capture_output=True, text=True, timeout=1800
            )
        except subprocess.TimeoutExpired:
            _failure.append(f"go install {MODULE} took longer than 30 minutes")
            return
        if made.returncode != 0:
            last = (made.stderr.strip().splitlines() or ["no output"])[-1]
            _failure.append(f"go install {MODULE} failed: {last}")
            return
        (Path(folder) / "versitygw").rename(VERSITYGW)  # at once: another run may be doing the same


class ObjectServer:
    """One running server with one bucket. The same port and directory serve across restarts."""

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
        """The objects, as the files they are."""
        return sorted(path for path in (self.bucket / prefix).rglob("*") if path.is_file())

    def start(self) -> None:
        """Start and wait for an answer, whatever it is."""
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(VERSITYGW),
                    *("--port", f"127.0.0.1:{self.port}", "--keep-alive", "--quiet"),
                    *("posix", "--nometa", str(self.home / "buckets")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                process_group=guarded.group(),
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
        """SIGKILL, by pid, and see it gone. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
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
