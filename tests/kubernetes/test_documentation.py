"""Every shell command of docs/kubernetes.md, run in order with Helm 4 on a cluster with Kafka and without eilpost.

The other tests of this folder run the same commands of Helm 3.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chart.helm import HELM_4
from tests.support.containers import images
from tests.support.docs.shell_blocks import script, shell_blocks
from tests.support.kubernetes.cluster import CommandError, Kubernetes
from tests.support.kubernetes.release import CLIENTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"


@pytest.mark.kubernetes
@pytest.mark.helm
@pytest.mark.helm_4
@pytest.mark.docker
@pytest.mark.timeout(1200)
def test_commands_of_the_page_work(operators: Kubernetes, tmp_path: Path) -> None:
    page = PAGE.read_text()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "helm").symlink_to(HELM_4.path)
    repository, _, tag = images.image().tag.rpartition(":")
    choices = {
        "IMAGE": repository,
        "TAG": tag,
        "KAFKA": "kafka.kafka.svc.cluster.local:9092",
        "PREFIX": "documentation.",
        "REPLICATION": "1",
        "DURABILITY": "dev",
        "CLIENTS": CLIENTS[1],
        "VALUES": str(tmp_path),
    }
    try:
        printed = operators.run(
            "bash",
            "-s",
            stdin=f"PATH={programs}:$PATH\nhelm version\n{script(page)}",
            timeout=1150,
            environment=choices,
        )
    except CommandError:
        print(operators.kubectl("--namespace", "eilpost", "get", "pods", "--output", "wide", status=None))
        print(operators.kubectl("--namespace", "eilpost", "logs", "job/load", "--tail", "40", status=None))
        raise
    finally:
        operators.kubectl("delete", "namespace", "eilpost", "--ignore-not-found", "--wait=false")
    assert f"### block {len(shell_blocks(page))}" in printed
    assert "Hi Alice" in printed
    assert 'Version:"v4.' in printed
    assert printed.count("job.batch/load condition met") == 2  # a load with a lost message fails
