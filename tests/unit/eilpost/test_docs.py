"""What docs/ says is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docs import generate

ROOT = generate.ROOT


@pytest.mark.parametrize("page", generate.PAGES, ids=lambda page: page.name)
def test_the_pages_made_from_the_code_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generate.with_part(text, generate.PAGES[page]()), "run `make docs`"


def test_every_rfc_cited_has_a_status_and_every_status_is_about_one_cited() -> None:
    table = (ROOT / "docs" / "reference" / "rfc.md").read_text(encoding="utf-8").partition(generate.BEGIN)[0]
    rows = re.findall(r"^\| (\d{3,5}) \| [^|]+ \| (yes|partly|reference) \|", table, re.MULTILINE)
    assert sorted(int(number) for number, _ in rows) == sorted(generate.cited())


def test_the_files_the_readme_and_docs_point_to_exist() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_readme_holds_no_unfilled_place() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")
