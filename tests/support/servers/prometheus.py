"""A real Prometheus (Debian's) on 127.0.0.1 with its own folder.

    with Prometheus(folder, {"router": {"127.0.0.1:8025": {"role": "router"}}}, rules=[...]) as prometheus:
        prometheus.query("sum(up)")

Targets are scraped and rules evaluated once a second. `at` of a query is in seconds since 1970.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import supervised
from tests.support.servers.ports import free_port

Labels = Mapping[str, str]
Targets = Mapping[str, Mapping[str, Labels]]  # job -> address -> labels


def why_missing() -> str | None:
    """The reason why Prometheus is not available, as text; None if it is."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed (apt-get install prometheus)" if missing else None


class Prometheus:
    """A context manager; runs inside the block."""

    def __init__(self, folder: Path, targets: Targets, *, rules: Sequence[Path] = (), interval: str = "1s") -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(file) for file in rules],
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": True,
                    "static_configs": [
                        {"targets": [address], "labels": dict(labels)} for address, labels in addresses.items()
                    ],
                }
                for job, addresses in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))

    def __enter__(self) -> Prometheus:
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self.folder}/prometheus.yml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=supervised.group(),
            )
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self._get("/-/ready")[0] == 200:
                    return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError(f"Prometheus did not become ready:\n{(self.folder / 'output').read_text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """An instant query; each sample has `metric` and `value`, a float. A scalar is one sample without labels."""
        found = self._api("query", query=expression, **({} if at is None else {"time": str(at)}))
        result = found["result"]
        if found["resultType"] == "scalar":
            result = [{"metric": {}, "value": result}]
        return [{"metric": each["metric"], "value": float(each["value"][1])} for each in result]

    def series(self, expression: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
        """A range query; each series has `metric` and `values`, pairs of time and value."""
        found = self._api("query_range", query=expression, start=str(begin), end=str(end), step=str(step))
        return [
            {"metric": each["metric"], "values": [(float(at), float(value)) for at, value in each["values"]]}
            for each in found["result"]
        ]

    def has_data(self, expression: str) -> bool:
        """Whether an instant query returns a number other than NaN."""
        return any(not math.isnan(each["value"]) for each in self.query(expression))

    def names(self) -> set[str]:
        """Names of all stored metrics."""
        return set(self._api("label/__name__/values"))

    def types(self) -> dict[str, str]:
        """The type of each scraped family."""
        return {name: entries[0]["type"] for name, entries in self._api("metadata").items()}

    def alerts(self) -> list[dict[str, Any]]:
        return list(self._api("alerts")["alerts"])

    def rule_errors(self) -> dict[str, str]:
        """The last error of each rule that has one."""
        groups = self._api("rules")["groups"]
        return {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")}

    def wait_until(self, expressions: Iterable[str], deadline_seconds: float = 30.0) -> list[str]:
        """Wait until each query returns data; returns those that did not."""
        waiting = list(expressions)
        end = time.monotonic() + deadline_seconds
        while True:
            waiting = [expression for expression in waiting if not self.has_data(expression)]
            if not waiting or time.monotonic() > end:
                return waiting
            time.sleep(0.5)

    def _api(self, path: str, **parameters: str) -> Any:
        status, body = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert status == 200, f"{path} {parameters}: {answer.get('error', body)}"
        return answer["data"]

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
