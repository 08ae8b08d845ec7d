"""docs/reports/performance.md: `make bench` writes one part of it and keeps the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.report import EMBEDDED, KAFKA, PAGE, replace_part

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.mark.parametrize(("part", "other"), [(EMBEDDED, KAFKA), (KAFKA, EMBEDDED)])
def test_a_new_part_keeps_the_other_part_and_the_head(part: str, other: str) -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    changed = replace_part(page, part, "measured again\n")
    assert changed.partition("<!-- begin")[0] == page.partition("<!-- begin")[0]
    assert "measured again\n<!-- end" in changed
    assert replace_part(changed, other, "") == replace_part(replace_part(page, other, ""), part, "measured again\n")
    assert len(changed) < len(page)


def test_a_page_without_the_markers_is_not_written() -> None:
    with pytest.raises(ValueError, match="Kafka"):
        replace_part("# Performance\n", KAFKA, "text\n")
