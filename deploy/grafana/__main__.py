"""Write the dashboards to helm/files/dashboards: `make dashboards`. A test compares."""

from __future__ import annotations

from pathlib import Path

from deploy.grafana import delivery, ingress, log, mail_queue, mailstore, overview, runtime, tenant

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "files" / "dashboards"
BOARDS = tuple(module.BOARD for module in (overview, ingress, mail_queue, delivery, log, mailstore, runtime, tenant))

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.file}.json").write_text(board.json(), encoding="utf-8")
        print(f"helm/files/dashboards/{board.file}.json")
