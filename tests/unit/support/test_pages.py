"""Tests of the pages: generated parts are current, links lead somewhere, the index is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docs import generate

ROOT = generate.ROOT


@pytest.mark.parametrize("page", generate.PAGES, ids=lambda page: page.name)
def test_generated_pages_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generate.with_part(text, generate.PAGES[page]()), "run `make docs`"


def test_cited_rfcs_and_documented_rfcs_are_the_same() -> None:
    table = (ROOT / "docs" / "reference" / "rfc.md").read_text(encoding="utf-8").partition(generate.BEGIN)[0]
    rows = re.findall(r"^\| (\d{3,5}) \| [^|]+ \| (yes|partly|reference) \|", table, re.MULTILINE)
    assert sorted(int(number) for number, _ in rows) == sorted(generate.cited())


def _pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), ROOT / "helm" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if "://" in path:
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or target.suffix != ".md" or anchor in _headings(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_pages_exist(page: Path) -> None:
    folders = "|".join((*generate.PACKAGES, "tests", "docs", "helm", "deploy"))
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    if page.name != "CHANGELOG.md":  # which names files that have moved
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_index_has_every_page() -> None:
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([^)]+\.md)\)", (docs / "index.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md") if page.parent.name != "runbooks"}
    assert linked >= pages - {"index.md"}


def test_the_changelog_has_one_heading_for_each_release_and_no_notes_of_versions() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert "(since" not in text
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert len(kinds) == len(set(kinds)), section.partition("\n")[0]


def test_readme_has_no_placeholder() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")
