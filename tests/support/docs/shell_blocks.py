"""The shell commands of a documentation page as one script. Pure."""

from __future__ import annotations

import re
import textwrap

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """Blocks marked `language` (empty: not marked), in page order."""
    return [textwrap.dedent(text) for _, found, text in _BLOCK.findall(page) if found == language]


def shell_blocks(page: str) -> list[str]:
    """Blocks marked `sh`, in page order."""
    return blocks(page, "sh")


def section(page: str, heading: str) -> str:
    """The text under a heading of the second level."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def script(page: str) -> str:
    """All blocks in one shell that stops at the first failing command; the number of each block is printed first."""
    numbered = (f"echo '### block {number}'\n{block}" for number, block in enumerate(shell_blocks(page), 1))
    return "set -eu -o pipefail\nexec 2>&1\n" + "\n".join(numbered)
