"""Journey 30: the image of `docker build -f deploy/Dockerfile`, run as its users run it.

The base image is a substitute with Debian's libraries and this machine's Python (`tests/support/containers`).
"""

from __future__ import annotations

import json
import smtplib
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.containers.engine import Engine, EngineError
from tests.support.containers.images import DOCKERFILE, ROOT, image
from tests.support.servers.ports import block_until, free_port

pytestmark = pytest.mark.docker

HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--tmpfs=/var/lib/eilpost:uid=10001,gid=10001,mode=0750",
)
INSTALLED = """
import importlib.metadata, json
print(json.dumps([[each.name, each.version] for each in importlib.metadata.distributions()]))"""
FETCH = """
import poplib
box = poplib.POP3('127.0.0.1', 2110)
box.user('alice@example.test'); box.pass_('eilpost-demo')
print(b' '.join(box.retr(1)[1]).decode())"""


@pytest.fixture(scope="module")
def tag(docker_engine: Engine) -> str:
    return image().load_into(docker_engine)


@contextmanager
def demo(engine: Engine, tag: str, name: str) -> Iterator[int]:
    """The demo with tmpfs as its only writable storage; yields its SMTP port."""
    port = free_port()
    published = f"--publish=127.0.0.1:{port}:2525"
    listens = "--env=EILPOST_INGRESS__SMTP_LISTEN=0.0.0.0:2525"
    engine.docker("run", "--detach", f"--name={name}", *HARDENED, published, listens, tag, "demo")
    try:
        block_until(
            lambda: "eilpost is ready" in engine.docker("logs", name),
            deadline_seconds=60,
            what=lambda: engine.logs(name),
        )
        yield port
    finally:
        engine.docker("rm", "--force", "--volumes", name)


def test_image_runs_as_its_own_user_and_prints_its_version(docker_engine: Engine, tag: str) -> None:
    assert docker_engine.docker("run", "--rm", *HARDENED, tag, "version").startswith("eilpost 0.1.0 (Python 3.")
    ids = docker_engine.docker("run", "--rm", *HARDENED, "--entrypoint=id", tag)
    assert ids.startswith("uid=10001(eilpost) gid=10001(eilpost)")


def test_image_has_no_build_or_install_tools(docker_engine: Engine, tag: str) -> None:
    def in_it(script: str) -> str:
        return docker_engine.docker("run", "--rm", "--entrypoint=sh", tag, "-c", script)

    wanted = "gcc cc g++ make ld as uv uvx pip pip3 hatchling"
    assert in_it(f"for name in {wanted} python; do command -v $name; done; true") == "/opt/eilpost/bin/python"
    for python in ("/opt/eilpost/bin/python", "/usr/local/bin/python"):
        modules = in_it(
            f'for name in pip uv hatchling; do {python} -c "import $name" 2>/dev/null && echo $name; done; true'
        )
        assert modules == ""


def test_installed_packages_are_those_of_the_lock_file(docker_engine: Engine, tag: str) -> None:
    """Names and versions, in the image's environment; the lock file's markers apply."""
    locked = [
        Requirement(line.rstrip("\\"))
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and line[0] not in " #"
    ]
    wanted = {
        canonicalize_name(each.name): str(each.specifier)
        for each in locked
        if each.marker is None or each.marker.evaluate({"sys_platform": "linux"})
    }
    printed = docker_engine.docker("run", "--rm", *HARDENED, "--entrypoint=python", tag, "-c", INSTALLED)
    installed = [(canonicalize_name(name), f"=={version}") for name, version in json.loads(printed)]
    assert ("eilpost", "==0.1.0") in installed
    assert sorted(each for each in installed if each[0] != "eilpost") == sorted(wanted.items())


def test_dockerfile_installs_packages_with_hashes() -> None:
    """Except uv, of which only the version is fixed, and the wheel that the build stage makes, without dependencies."""
    lines = (ROOT / DOCKERFILE).read_text().replace("\\\n", "").splitlines()
    commands = [part.strip() for line in lines if line.startswith("RUN ") for part in line[4:].split("&&")]
    installs = [command for command in commands if "pip install" in command or command.startswith("uv build")]
    unchecked = [command for command in installs if "--require-hashes" not in command.split()]
    assert len(installs) == 4
    assert [command.partition("==")[0] for command in unchecked] == [
        "pip install uv",
        "uv pip install --python /opt/eilpost/bin/python --no-deps /wheels/*.whl",
    ]


def test_layers_on_the_base_image_are_small(docker_engine: Engine, tag: str) -> None:
    sizes = docker_engine.docker("history", "--human=false", "--format={{.Size}}", tag).split()
    own = sum(map(int, sizes[:-1])) / 1e6  # the last is the base image
    print(f"eilpost's own layers: {own:.0f} MB; the whole image: {sum(map(int, sizes)) / 1e6:.0f} MB")
    assert own < 120


def test_demo_runs_on_a_read_only_root_file_system(docker_engine: Engine, tag: str) -> None:
    with demo(docker_engine, tag, "eilpost-demo") as port, smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("bob@example.test", ["alice@example.test"], b"Subject: read-only\r\n\r\nHello\r\n")
        end = time.monotonic() + 30
        while True:
            try:
                assert "Subject: read-only" in docker_engine.docker("exec", "eilpost-demo", "python", "-c", FETCH)
                break
            except EngineError:  # not started yet
                assert time.monotonic() < end
                time.sleep(0.2)
        with pytest.raises(EngineError, match="Read-only file system"):
            docker_engine.docker("exec", "--user=0", "eilpost-demo", "touch", "/opt/eilpost/x")


def test_sigterm_to_pid_1_drains(docker_engine: Engine, tag: str) -> None:
    with (
        demo(docker_engine, tag, "eilpost-drain") as port,
        closing(smtplib.SMTP("127.0.0.1", port, timeout=30)) as client,
    ):
        assert docker_engine.docker("exec", "eilpost-drain", "cat", "/proc/1/comm") == "eilpost"
        client.ehlo()
        assert client.mail("bob@example.test")[0] == client.rcpt("alice@example.test")[0] == 250
        assert client.docmd("DATA")[0] == 354
        stop = threading.Thread(target=docker_engine.docker, args=("stop", "--time=40", "eilpost-drain"))
        stop.start()
        block_until(lambda: '"event":"draining"' in docker_engine.logs("eilpost-drain"), what="the drain")
        client.send(b"Subject: in the drain\r\n\r\nHello\r\n.\r\n")
        status, reply = client.getreply()
        assert status == 250, reply
        stop.join(60)
        queue_id = reply.decode().rpartition(" ")[2]
        lines = [json.loads(line) for line in docker_engine.logs("eilpost-drain").splitlines() if line.startswith("{")]
        events = [line["event"] for line in lines]
        assert [line["queue_id"] for line in lines if line["event"] == "message accepted"] == [queue_id]
        assert (
            events.index("signal")
            < events.index("draining")
            < events.index("message accepted")
            < events.index("stopped")
        )
        state = docker_engine.inspect("eilpost-drain")["State"]
        assert isinstance(state, dict)
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
