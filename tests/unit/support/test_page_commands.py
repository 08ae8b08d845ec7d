"""Names on the pages: each `eilpost ...` exists with its options, each dotted name is a setting or a chart value, each
SMTP reply is one of the code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.monitoring.commands import why_wrong, wrong_keys
from tests.support.docs.generate import PACKAGES

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "helm/README.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "runbooks"),
]

_BLOCK = re.compile(r"^ *```(?:sh|text)?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# At the start of a line, or behind a prompt, variables, `kubectl exec ... --`, `sudo -u USER`, `exec` or a container's
# name. A call in a text is one in backquotes.
_CALL_IN_BLOCK = re.compile(
    r"(?:^\s*(?:\$ )?(?:[A-Z_]+=\S+ +)*|-- |sudo -u \w+ |exec |\| |<\()(?:\S*bin/)?eilpost ([a-z][^|;&>#)\n\"]*)",
    re.MULTILINE,
)
_CALL_IN_TEXT = re.compile(r"`(?:\S*bin/)?eilpost ([a-z][^`|]*)", re.DOTALL)
_FILE = re.compile(r"\.(?:toml|md|yaml|json|service|py|test)$")


def calls(page: str) -> set[tuple[str, ...]]:
    """The words after `eilpost` of each call."""
    blocks = "\n".join(_BLOCK.findall(page)).replace("\\\n", " ")
    found = [*_CALL_IN_BLOCK.findall(blocks), *_CALL_IN_TEXT.findall(_BLOCK.sub("", page))]
    return {tuple(call.replace("...", "").split()) for call in found if "---" not in call}  # not the frame of a drawing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {call: wrong for call in calls(text) if (wrong := why_wrong(call))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_of_a_page_exist(page: Path) -> None:
    assert [name for name in wrong_keys(page.read_text(encoding="utf-8")) if not _FILE.search(name)] == []


def test_replies_on_the_pages_are_those_of_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    pages = "".join(
        page.read_text(encoding="utf-8") for page in [*PAGES, *sorted((ROOT / "docs/runbooks").glob("*.md"))]
    )
    replies = set(re.findall(r"`[245]\d\d [245]\.\d+\.\d+ ([A-Z][^`,]*)", pages))
    assert len(replies) > 10
    assert {text for text in replies if text.partition("queued as ")[0] not in code} == set()


def test_calls_are_found() -> None:
    page = "Run `eilpost queue\n--json`.\n```\n$ eilpost trace ID\nsudo -u eilpost /opt/bin/eilpost doctor --now\n```\n"
    assert calls(page) == {("queue", "--json"), ("trace", "ID"), ("doctor", "--now")}
    assert why_wrong(("doctor", "--now")) == "eilpost doctor has no option --now"
    assert len({call for each in PAGES for call in calls(each.read_text(encoding="utf-8"))}) > 70
