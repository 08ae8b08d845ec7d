"""`python deploy/kafka/broker.py up|down|status|fetch`: a local Kafka for development, with Java 17 and Maven only.

`up` runs in the foreground until Ctrl-C or `down`, and prints the settings for eilpost. It needs only Python's standard
library, so it works before `make setup`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    # Python adds the file's own folder to sys.path; modules are imported from the repository's root.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from deploy.kafka import jars
from deploy.kafka.cluster import Cluster, prepare_jars
from deploy.kafka.jars import BrokerError
from deploy.kafka.metadata import live_brokers

_RESTART_SECONDS = 20  # long enough to observe the cluster without the node


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 success, 1 no cluster is running (`down`, `status`), 2 cannot start."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="broker.py", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start brokers in the foreground", formatter_class=defaults)
    up.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    up.add_argument("--port", type=int, default=9092, help="of the first node, counted up for the others")
    up.add_argument("--secure", action="store_true", help="add listeners with TLS and SASL, 200 to 400 ports above")
    down = commands.add_parser("down", help="stop the brokers of --dir", formatter_class=defaults)
    status = commands.add_parser("status", help="show which brokers are alive", formatter_class=defaults)
    for command in (up, down, status):
        command.add_argument("--dir", type=Path, default=Path("var/kafka"), help="data folder, not deleted")
    commands.add_parser("fetch", help="fetch the jars only")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        match options.command:
            case "up":
                _up(options.nodes, options.dir, options.port, secure=options.secure)
            case "fetch":
                _print_line(str(prepare_jars()))
            case command:
                state = _running(options.dir)
                if state is None:
                    _print_line(f"no cluster is running in {options.dir}")
                    return 1
                if command == "down":
                    _down(options.dir, int(state[0]))
                else:
                    _print_status(state[1] if len(state) > 1 else "")
        return 0
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _up(nodes: int, directory: Path, port: int, *, secure: bool) -> None:
    with _locked_directory(directory) as state_file:
        if not jars.are_fetched():
            _print_line(f"Fetching Kafka {jars.VERSION} (once, about 45 MB) ...")
        nodes_text = "1 node" if nodes == 1 else f"{nodes} nodes"
        _print_line(f"Starting Kafka {jars.VERSION}, {nodes_text} ...")
        prepare_jars()
        cluster = Cluster(nodes, directory, base_port=port, secure=secure)
        started = time.monotonic()
        cluster.start()
        state_file.write_text(f"{os.getpid()}\n{cluster.bootstrap}\n")
        _print_line(
            f"Kafka {jars.VERSION}, {nodes_text}, started in {time.monotonic() - started:.1f} s: {cluster.bootstrap}"
        )
        _print_line(f'For eilpost: log.url = "kafka://{cluster.bootstrap}"')
        _print_line(f'         or: EILPOST_LOG__URL="kafka://{cluster.bootstrap}"')
        if nodes < 3:
            _print_line('        and: log.durability = "dev", because one broker stores one copy')
        _print_line(f"For tests:   EILPOST_TEST_KAFKA={cluster.bootstrap}")
        if cluster.credentials is not None:
            _print_line(f"Secure:      {cluster.addresses('secure')} (SASL_SSL; PLAIN or SCRAM-SHA-256)")
            _print_line(f"             {cluster.addresses('tls')} (TLS only), {cluster.addresses('login')} (SASL only)")
            _print_line(f"             user {cluster.credentials.user}, password in {directory / 'secure/password'}")
            _print_line(f"             authority {cluster.credentials.ca}")
        _print_line(
            f"Data and logs are in {directory}. Stop it with Ctrl-C or"
            f" `python3 deploy/kafka/broker.py down --dir {directory}`."
        )
        try:
            _supervise(cluster)
        finally:
            cluster.stop()
            _print_line(f"Kafka stopped; the data stays in {directory} for the next start.")


def _supervise(cluster: Cluster) -> None:
    """Run until Ctrl-C. In a cluster of several nodes, a killed node is restarted after a while."""
    for node in cluster.nodes:
        _print_line(f"  node {node.number} is process {node.pid}")
    exited_at: dict[int, float] = {}  # since when
    while True:
        time.sleep(0.2)
        for node in cluster.nodes:
            if node.running():
                continue
            if len(cluster.nodes) == 1:
                raise BrokerError(f"the node exited: see {node.log_path}")
            if node.number not in exited_at:
                exited_at[node.number] = time.monotonic()
                _print_line(f"  node {node.number} exited, restarting in {_RESTART_SECONDS} s")
            elif time.monotonic() - exited_at[node.number] >= _RESTART_SECONDS:
                del exited_at[node.number]
                cluster.restart(node.number)
                _print_line(f"  node {node.number} is process {node.pid}")


def _down(directory: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    while _running(directory) is not None:
        time.sleep(0.1)


def _print_status(bootstrap: str) -> None:
    for address in bootstrap.split(",") if bootstrap else ():
        alive = live_brokers(int(address.rpartition(":")[2]))
        _print_line(f"{address}: " + (f"alive, reports as alive: {sorted(alive)}" if alive else "does not respond"))
    if not bootstrap:
        _print_line("starting")


@contextlib.contextmanager
def _locked_directory(directory: Path) -> Iterator[Path]:
    """Lock `directory` for this process; yields the state file that `down` and `status` read."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BrokerError(f"a cluster is already running in {directory}") from None
        state_file = directory / "running"
        state_file.write_text(f"{os.getpid()}\n")
        yield state_file


def _running(directory: Path) -> list[str] | None:
    """The lines of the state file, if its writer still holds the lock."""
    lock = directory / "lock"
    if not lock.exists():
        return None
    with lock.open("w") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return (directory / "running").read_text().split()
    return None


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
