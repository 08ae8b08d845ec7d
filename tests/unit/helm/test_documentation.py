"""Blocks of docs/kubernetes.md that tests/kubernetes does not run: values (`yaml`) and a command of this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import helm
from tests.support.docs.chart import CHART
from tests.support.docs.shell_blocks import blocks
from tests.support.servers.eilpost_process import EILPOST

pytestmark = pytest.mark.helm

PAGE = (CHART.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
BLOCKS = {next(iter(yaml.safe_load(block))): block for block in blocks(PAGE, "yaml")}


def _leaves(values: Any) -> Iterator[Any]:
    match values:
        case dict():
            for value in values.values():
                yield from _leaves(value)
        case list():
            for value in values:
                yield from _leaves(value)
        case _:
            yield values


@pytest.mark.parametrize("key", BLOCKS)
def test_values_of_a_block_are_in_the_manifests(key: str, tmp_path: Path) -> None:
    """The chart's schema refuses a key that it does not know."""
    file = tmp_path / "values.yaml"
    file.write_text(BLOCKS[key], encoding="utf-8")
    rendered = helm.template(helm.file_of("dedicated-tenant"), file)
    assert rendered != list(helm.objects("dedicated-tenant"))
    text = json.dumps(rendered)
    missing = [leaf for leaf in _leaves(yaml.safe_load(BLOCKS[key])) if leaf is not True and str(leaf) not in text]
    assert missing == []


def test_page_has_values_for_keda_tolerations_and_source_addresses() -> None:
    assert set(BLOCKS) == {"router", "defaults", "tenants"}


def test_settings_are_checked_as_the_page_shows(tmp_path: Path) -> None:
    (block,) = (block for block in blocks(PAGE, "text") if "config check" in block)
    command, output = block.removeprefix("$ ").split("\n", 1)
    command = command.replace(".venv/bin/eilpost", str(EILPOST))
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stdout + done.stderr == output


def test_more_delivery_shards_restart_nothing(tmp_path: Path) -> None:
    """docs/kubernetes.md, "Add partitions": no pod template has their number."""
    file = tmp_path / "values.yaml"
    file.write_text("log: {deliveryShards: 24}", encoding="utf-8")
    more = helm.template(helm.file_of("minimal"), file)
    deployments = [each for each in more if each["kind"] == "Deployment"]
    assert deployments == helm.of_kind("minimal", "Deployment")
    assert len(deployments) == 4
