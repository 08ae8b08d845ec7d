"""Invalid values stop Helm with one line that names the key and the remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import helm

pytestmark = pytest.mark.helm

_BAD: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "bad_values.yaml").read_text(encoding="utf-8")
)
_WHERE = re.compile(r"Error: execution error at \(eilpost/templates/\w+\.(yaml|tpl):\d+:\d+\): ")
_HINT = "Use --debug flag to render out invalid YAML"


def _said(folder: Path, values: str) -> list[str]:
    """Helm's error lines."""
    bad = folder / "bad.yaml"
    bad.write_text(values, encoding="utf-8")
    with pytest.raises(helm.HelmError) as raised:
        helm.template(helm.file_of("minimal"), bad)
    return [line for line in str(raised.value).splitlines() if line and line != _HINT]


@pytest.mark.parametrize("what", [what for what, bad in _BAD.items() if "line" in bad])
def test_one_line_names_the_key_and_the_remedy(what: str, tmp_path: Path) -> None:
    (line,) = _said(tmp_path, _BAD[what]["values"])
    assert _WHERE.sub("", line) == _BAD[what]["line"]


@pytest.mark.parametrize("what", [what for what, bad in _BAD.items() if "schema" in bad])
def test_schema_error_names_the_key(what: str, tmp_path: Path) -> None:
    *_, line = _said(tmp_path, _BAD[what]["values"])
    assert line == _BAD[what]["schema"]


@pytest.mark.parametrize("release", ["123", "mail.one"])
def test_release_name_that_no_service_can_begin_with_is_refused(release: str) -> None:
    with pytest.raises(helm.HelmError, match=r"fullnameOverride: .* cannot begin the name of a Service"):
        helm.template(helm.file_of("minimal"), release=release)
