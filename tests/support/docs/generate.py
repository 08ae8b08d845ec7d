"""Generator of the parts of docs/ and of the chart that follow from the code: `make docs` runs it, a test compares.

Text outside the markers is written by hand and kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from mail.settings_renamed import RENAMED
from mail.settings_text import default_toml
from tests.support.docs import chart, cli, metrics

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mail", "ingress", "router", "delivery", "mailstore", "eilpost")
BEGIN, END = "<!-- begin: made by `make docs` -->\n", "<!-- end -->\n"

_CITED = re.compile(r"RFC (\d{3,5})(?:,? sections? (\d[\d.]*\d|\d))?")


def cited() -> dict[int, dict[str, set[str]]]:
    """The files that cite each RFC, by section; "" is the whole RFC."""
    found: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = re.sub(r"\s*\n\s*(?:# ?)?", " ", path.read_text(encoding="utf-8"))
            for match in _CITED.finditer(text):
                found[int(match[1])][match[2] or ""].add(str(path.relative_to(ROOT)))
    return found


def _numbers(section: str) -> list[int]:
    return [int(part) for part in section.split(".") if part]


def section_table() -> str:
    lines = ["| section | file |", "|---|---|"]
    for number, sections in sorted(cited().items()):
        for section in sorted(sections, key=_numbers):
            name = f"RFC {number} section {section}" if section else f"RFC {number}"
            links = ", ".join(f"[{file}](../../{file})" for file in sorted(sections[section]))
            lines.append(f"| {name} | {links} |")
    return "\n".join(lines) + "\n"


def settings_block() -> str:
    """Every setting with its default, and the former names."""
    former = "".join(f"| {old} | `{new}` |\n" for old, new in RENAMED.items())
    return f"```toml\n{default_toml()}```\n\n## Former names\n\n| former | now |\n|---|---|\n{former}"


PAGES = {
    ROOT / "docs" / "reference" / "settings.md": settings_block,
    ROOT / "docs" / "reference" / "rfc.md": section_table,
    ROOT / "docs" / "reference" / "metrics.md": metrics.metric_tables,
    ROOT / "docs" / "reference" / "cli.md": cli.command_reference,
    chart.README: chart.table,
}


def with_part(text: str, part: str) -> str:
    """`text` with the part between the markers replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the marks are missing")
    return head + begin + part + end + tail


if __name__ == "__main__":
    for page, make in PAGES.items():
        page.write_text(with_part(page.read_text(encoding="utf-8"), make()), encoding="utf-8")
        print(page.relative_to(ROOT))
    chart.SCHEMA.write_text(chart.schema_text(), encoding="utf-8")
    chart.VARIABLES.write_text(chart.variables_text(), encoding="utf-8")
    chart.RENAMED_SETTINGS.write_text(chart.renamed_text(), encoding="utf-8")
    print(*(path.relative_to(ROOT) for path in (chart.SCHEMA, chart.VARIABLES, chart.RENAMED_SETTINGS)))
