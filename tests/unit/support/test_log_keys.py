"""The keys of log lines: one key per meaning, and docs/operate.md lists all of them."""

from __future__ import annotations

import re

from tests.support.docs.log_lines import ROOT, log_keys

# `exc_info` is written as `traceback`.
_NOT_WRITTEN = {"exc_info"}


def test_operate_page_lists_exactly_the_keys_of_log_lines() -> None:
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    table = page.partition("\n## Log lines\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = [key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)]
    assert len(listed) == len(set(listed))
    of_every_line = {"time", "level", "event", "library"}
    of_ready = {"smtp", "pop3", "http"}  # from a dict
    assert set(listed) == set().union(*log_keys().values()) - _NOT_WRITTEN | of_every_line | of_ready
