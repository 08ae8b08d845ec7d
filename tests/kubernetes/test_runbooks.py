"""The shell commands of the runbooks' index, run in a release with the variables that the page explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docs.shell_blocks import script
from tests.support.kubernetes.release import Release

INDEX = Path(__file__).resolve().parents[2] / "docs" / "runbooks" / "README.md"
# A message to trace, and the pod of each role; pod names change from run to run.
PREPARED = """```sh
cd "$FOLDER"
POD="$(kubectl -n $NAMESPACE get pods -l app.kubernetes.io/component=$ROLE --output jsonpath={.items[0].metadata.name})"
QUEUE_ID="$(kubectl -n $NAMESPACE exec $POD -- python -c "
import smtplib
with smtplib.SMTP('mail-eilpost-ingress', 25, timeout=30) as server:
    server.ehlo()
    server.mail('bob@example.test')
    server.rcpt('alice@example.test')
    print(server.data(b'Subject: Traced')[1].decode().split()[-1])")"
```
"""


@pytest.mark.kubernetes
@pytest.mark.helm
@pytest.mark.docker
@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", ["ingress", "router", "delivery"])
def test_commands_of_the_index_work(mail: Release, tmp_path: Path, role: str) -> None:
    index = INDEX.read_text().replace("trace QUEUE_ID", 'trace "$QUEUE_ID"')
    variables = {"NAMESPACE": mail.namespace, "RELEASE": "mail", "ROLE": role, "FOLDER": str(tmp_path)}
    try:
        mail.cluster.run("bash", "-s", stdin=script(PREPARED + index), timeout=150, environment=variables)
    finally:
        doctor = tmp_path / "doctor.txt"
        print(doctor.read_text() if doctor.exists() else "doctor did not run")
    assert "FAIL" not in doctor.read_text()
    assert "delivered  alice@example.test" in (tmp_path / "trace.txt").read_text()
    assert (tmp_path / "queue.json").read_text().startswith("[")
    assert '"event":"message accepted"' in (tmp_path / "lines.txt").read_text()
