"""Former names of settings: refused, and named nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mail.settings import Settings, dump
from mail.settings_file import load, variable_name
from mail.settings_renamed import RENAMED
from mail.settings_section import SettingsError


def _error(path: Path | None, environment: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, environment)
    return str(caught.value)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_former_name_is_refused_with_the_new_name(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "eilpost.toml"
    section, _, key = old.partition(".")
    file.write_text(f'[{section}]\n{key} = "x"\n')
    assert _error(file, {}) == f"{file}: {old}: is now called {new}: rename it"
    variable = variable_name(old)
    assert _error(None, {variable: "x"}) == (
        f"environment variable {variable}: is now called {variable_name(new)}: rename it"
    )


def test_renamed_settings_exist_under_the_new_name_only() -> None:
    known = {f"{section}.{key}" for section, values in dump(Settings()).items() for key in values}
    assert known >= set(RENAMED.values())
    assert not known & set(RENAMED)


def test_pages_chart_and_deployment_files_have_no_former_name() -> None:
    root = Path(__file__).resolve().parents[3]
    former = re.compile(rf"(?<![\w/.])({'|'.join(map(re.escape, [*RENAMED, *map(variable_name, RENAMED)]))})\b(?![.(])")
    files = {path for folder in ("docs", "helm", "deploy") for path in (root / folder).rglob("*") if path.is_file()}
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix not in (".png", ".pyc")}
    del texts[root / "helm" / "files" / "renamed.yaml"]
    page = root / "docs" / "reference" / "settings.md"
    texts[page] = re.sub(r"^## Former names\n.*?(?=^## )", "", texts[page], flags=re.MULTILINE | re.DOTALL)
    assert {str(path): found for path, text in texts.items() if (found := former.findall(text))} == {}
    samples = {str(path): [key for key in _sample_keys(text) if key in RENAMED] for path, text in texts.items()}
    assert {path: found for path, found in samples.items() if found} == {}


def _sample_keys(text: str) -> Iterator[str]:
    """The settings that samples of TOML set, as "section.key"."""
    section = ""
    for match in re.finditer(r"\[([a-z]+)\](?!\()|(?<![\w.])(\w+) *= ", text):
        if match[1]:
            section = match[1]
        else:
            yield f"{section}.{match[2]}"
