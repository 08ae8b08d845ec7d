"""A real Postfix with its own configuration, queue and data directories and one private port.

`master` is started in a session of its own and stopped by pid; its daemons end with it. If the run is killed, a shell
ends them. Needs Debian's postfix package and root (Postfix's master insists).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.servers.ports import free_port, wait_for_greeting

MASTER = Path("/usr/lib/postfix/sbin/master")

_MASTER_CF = """\
# service type  private unpriv  chroot  wakeup  maxproc command
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       n       -       -       lmtp
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""

_PRIVATE_QUEUES = [
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "private",
    "saved",
    "trace",
]

# $1 is master's process group, $2 its folder. Standard input closes when the run ends for any reason.
_AT_THE_END = """
trap "" HUP INT TERM
cat >/dev/null
kill -s TERM -- "-$1"
while kill -s 0 -- "-$1"; do sleep 0.1; done
rm -rf "$2"
"""


def why_missing() -> str | None:
    """The reason why Postfix is not available, as text; None if it is."""
    if not MASTER.exists():
        return "Debian's postfix package is not installed (apt-get install postfix)"
    if os.geteuid() != 0:
        return "Postfix's master has to be started by root"
    return None


class Postfix:
    """One running instance. `settings`: main.cf parameters on top of the minimum for a private instance."""

    def __init__(self, settings: Mapping[str, str], *, port: int | None = None, log: bool = True) -> None:
        self.port = port or free_port()
        # Not below pytest's tmp_path, which the daemons' user cannot read.
        self.home = Path(tempfile.mkdtemp(prefix="eilpost-postfix-"))
        self.home.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self._at_the_end: subprocess.Popen[bytes] | None = None
        self._lay_out(settings, log)

    @property
    def pid(self) -> int:
        """The pid of master; its daemons share its session."""
        assert self._process is not None
        return self._process.pid

    def main_cf(self) -> str:
        return (self.home / "etc" / "main.cf").read_text()

    def _lay_out(self, settings: Mapping[str, str], log: bool) -> None:
        daemon = pwd.getpwnam("postfix")
        drop = shutil.chown
        etc, queue, data = self.home / "etc", self.home / "queue", self.home / "data"
        for directory in (etc, queue, data):
            directory.mkdir(mode=0o755)
        data.chmod(0o700)
        drop(data, "postfix", "postfix")
        for name in _PRIVATE_QUEUES:
            (queue / name).mkdir(mode=0o700)
            os.chown(queue / name, daemon.pw_uid, -1)
        (queue / "pid").mkdir(mode=0o755)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            (queue / name).mkdir()
            (queue / name).chmod(mode)
            drop(queue / name, "postfix", "postdrop")
        parameters = {
            "compatibility_level": "3.6",
            "queue_directory": str(queue),
            "data_directory": str(data),
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "myhostname": "postfix.test",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "biff": "no",
            "smtpd_tls_security_level": "none",
            "smtp_tls_security_level": "none",
        }
        if log:
            parameters |= {"maillog_file": str(self.home / "log"), "maillog_file_prefixes": str(self.home)}
        parameters |= settings
        (etc / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        (etc / "master.cf").write_text(_MASTER_CF.format(port=self.port))

    def start(self) -> None:
        """Start and wait for the greeting."""
        with (self.home / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [str(MASTER), "-c", str(self.home / "etc"), "-d"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self._at_the_end = subprocess.Popen(
            ["sh", "-c", _AT_THE_END, "sh", str(self._process.pid), str(self.home)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            wait_for_greeting(self.port)
        except TimeoutError as error:
            raise RuntimeError(f"Postfix did not start: {self.log()[-2000:]}") from error

    def log(self) -> str:
        """Its log so far."""
        parts = [self.home / "log", self.home / "stderr"]
        return "".join(part.read_text(errors="replace") for part in parts if part.exists())

    def queued(self) -> int:
        """Messages in its queue, in any state."""
        queue = self.home / "queue"
        return sum(
            len(files)
            for name in ("incoming", "active", "deferred", "maildrop")
            for _, _, files in os.walk(queue / name)
        )

    def stop(self) -> None:
        """Stop master and its daemons (same session) and remove the directories."""
        if self._at_the_end is not None:
            self._at_the_end.kill()
            self._at_the_end.communicate()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Postfix:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
